"""The same application on Ray Serve: one thin deployment, as many replicas as asked.

Each replica loads student and index itself and batches by itself. Ray Serve's own `@serve.batch` was the alternative;
then the two ways to serve would batch, refuse and measure differently.
"""

import argparse
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from pipeline.execution.cluster import connected
from pipeline.web.guard import Access
from pipeline.web.served import ServedIndex
from stages.contract.params import Cluster

if TYPE_CHECKING:
    from starlette.types import ASGIApp

NAME = "puma"
QUEUED = 256  # requests that wait at a proxy for a replica; more are refused with a 503
QUIET = {"log_level": "WARNING", "enable_access_log": False}


def run_replicas(options: argparse.Namespace, served: ServedIndex, token: str | None, port: int, place: str) -> None:
    """Deploys on the cluster of RAY_ADDRESS, or on a new one, and stays until it is stopped; `place` is said."""
    import torch
    from ray import serve

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
        )(serve.ingress(app_builder(served, Access.of(options.host, token), options.batch))())
        try:
            serve.run(replica.bind(), name=NAME, route_prefix="/")
            print(f"Puma serves {place} on Ray Serve, {options.replicas} replicas (Ctrl-C ends)", flush=True)
            while True:
                time.sleep(3600)
        finally:
            serve.delete(NAME)


def app_builder(served: ServedIndex, access: Access, batch: int) -> "Callable[[], ASGIApp]":
    """What Ray Serve calls in each replica: loads the index, then builds the application."""

    def build() -> "ASGIApp":
        from pipeline.web.app import build_app
        from pipeline.web.limits import RequestLimits
        from pipeline.web.meters import Meters

        limits, meters = RequestLimits(batch=batch), Meters()
        return build_app(served.load(limits, meters), access, limits, meters)

    return build
