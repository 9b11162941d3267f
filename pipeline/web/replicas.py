"""The same application on Ray Serve: one thin deployment, as many replicas as asked.

Each replica loads student and index itself and batches by itself. Ray Serve's own `@serve.batch` was the alternative;
then the two ways to serve would batch, refuse and measure differently.
"""

import argparse
import time
from typing import TYPE_CHECKING, Any

from pipeline.web.guard import Access

if TYPE_CHECKING:
    from pipeline.serve import Source

NAME = "puma"
QUEUED = 256  # requests that wait at a proxy for a replica; more are refused with a 503
QUIET = {"log_level": "WARNING", "enable_access_log": False}


def run_replicas(options: argparse.Namespace, source: "Source", token: str | None, port: int, told: str) -> None:
    """Deploys on the cluster of RAY_ADDRESS, or on one of its own, and stays until it is stopped."""
    import torch
    from ray import serve

    from pipeline.execution.cluster import connected
    from stages.contract.params import Cluster

    resources = {"num_gpus": 1} if torch.cuda.is_available() else {"num_cpus": 1}
    with connected(Cluster(workers=options.replicas)):
        serve.start(http_options={"host": options.host, "port": port}, logging_config=QUIET)
        replica = serve.deployment(
            name=NAME,
            num_replicas=options.replicas,
            ray_actor_options=resources,
            max_ongoing_requests=256,
            max_queued_requests=QUEUED,
            logging_config=QUIET,
        )(replica_class())
        try:
            serve.run(replica.bind(source, Access.of(options.host, token), options.batch), name=NAME, route_prefix="/")
            print(f"Puma serves {told} on Ray Serve, {options.replicas} replicas (Ctrl-C ends)", flush=True)
            while True:
                time.sleep(3600)
        finally:
            serve.delete(NAME)


def replica_class() -> type:
    """The deployment's class: loads, then hands Ray Serve the application."""
    from ray import serve

    @serve.ingress()
    class Replica:
        """One copy of the server."""

        def __init__(self, source: "Source", access: Access, batch: int) -> None:
            self.source, self.access, self.batch = source, access, batch

        def __serve_build_asgi_app__(self) -> Any:
            from pipeline.web.app import build_app
            from pipeline.web.limits import Limits
            from pipeline.web.meters import Meters

            limits, meters = Limits(batch=self.batch), Meters()
            return build_app(self.source.load(limits, meters), self.access, limits, meters)

    return Replica
