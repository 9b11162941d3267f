"""The same application on Ray Serve: one thin deployment, as many replicas as asked.

Each replica loads student and index itself and batches by itself. Ray Serve's own `@serve.batch` was the alternative;
then the two ways to serve would batch, refuse and measure differently.
"""

import argparse
import time

from pipeline.execution.cluster import connected
from pipeline.web.guard import Access
from pipeline.web.served import ServedIndex
from stages.contract.params import Cluster

NAME = "puma"
QUEUED = 256  # requests that wait at a proxy for a replica; more are refused with a 503
QUIET = {"log_level": "WARNING", "enable_access_log": False}


def run_replicas(options: argparse.Namespace, served: ServedIndex, token: str | None, port: int, place: str) -> None:
    """Deploys on the cluster of RAY_ADDRESS, or on a new one, and stays until it is stopped; `place` is said."""
    import torch
    from ray import serve

    access, batch = Access.of(options.host, token), options.batch
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
        )(serve.ingress(lambda: served.app(access, batch))())  # called in each replica
        try:
            serve.run(replica.bind(), name=NAME, route_prefix="/")
            print(f"Puma serves {place} on Ray Serve, {options.replicas} replicas (Ctrl-C ends)", flush=True)
            while True:
                time.sleep(3600)
        finally:
            serve.delete(NAME)
