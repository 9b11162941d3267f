"""What several cases share, each started when the first case asks for it: Ray nodes, a bucket, an MLflow server."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from tests.faults.world import World
from tests.s3.servers import CREDENTIALS, Proxy, Request, free_port, moto_server
from tests.tracking_server import curves, tracking_server

HERE = "127.0.0.1"
OPEN = {"RAY_AUTH_MODE": "disabled"}
"""Ray keeps what it read of the environment when it was imported, where no token was asked for; nodes listen here."""
NODES = "127.0.0.2"
"""Where nodes listen. Who joins a cluster at 127.0.0.1 is sent on by Ray to this machine's address in its network."""
HEAD_CPUS, NODE_CPUS = 1, 3


def passes(request: Request) -> None:
    """The rule of a proxy that does nothing."""


class Bucket:
    """A bucket, and a proxy before it by which runs reach it."""

    def __init__(self, address: str) -> None:
        self.address, self.proxy = address, Proxy(address)

    def attach(self, world: World) -> None:
        """Lets the world's command use it."""
        self.proxy.rule = passes
        world.settings.append(f"store_endpoint={self.proxy.address}")
        world.variables |= CREDENTIALS


class Mlflow:
    """A tracking server, and a proxy before it by which runs reach it."""

    def __init__(self, address: str) -> None:
        self.address, self.proxy = address, Proxy(address)

    def attach(self, world: World) -> None:
        """Has the world's command track here; what can't be sent waits in a cache of its own."""
        self.proxy.rule = passes
        others = [one for one in world.settings if not one.startswith("tracking_uri=")]
        world.settings[:] = [*others, f"tracking_uri={self.proxy.address}"]
        world.variables |= {"XDG_CACHE_HOME": str(world.home / "unsent")}

    def curves(self, stage: str) -> list[list[int]]:
        """The steps at which each run of a stage told its loss, in the order of the runs."""
        return curves(self.address, stage)


class Nodes:
    """Ray nodes on this machine that come and go, beside a head where the command runs and no training fits.

    A training process asks for more CPUs than the head has, so that it lands on another node; of two actors of a pool
    at least one does.
    """

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": HEAD_CPUS, "include_dashboard": True, "dashboard_port": free_port()}
        self.cluster = Cluster(initialize_head=True, head_node_args={"node_ip_address": NODES, **head})
        self.workers: list[Any] = []

    def attach(self, world: World) -> None:
        """Has the world's command join, with one node beside the head."""
        while len(self.workers) > 1:
            self.lose()
        if not self.workers:
            self.add()
        world.settings += [f"cluster.cpus_per_worker={HEAD_CPUS + 1}", "cluster.actors=2"]
        world.variables |= {"RAY_ADDRESS": self.cluster.address, **OPEN}

    def add(self) -> None:
        """A node joins."""
        self.workers.append(self.cluster.add_node(num_cpus=NODE_CPUS, node_ip_address=NODES))

    def lose(self) -> None:
        """The node that is there longest dies, at once with all that runs on it."""
        node = self.workers.pop(0)
        for raylet in node.all_processes["raylet"]:
            for process in psutil.Process(raylet.process.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        self.cluster.remove_node(node, allow_graceful=False)

    def warn(self, seconds: float) -> None:
        """Tells Ray that this node will be taken away, as autoscalers do for spot nodes."""
        from ray._raylet import GcsClient
        from ray.core.generated.autoscaler_pb2 import DrainNodeReason

        reason, deadline = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"), int((time.time() + seconds) * 1000)
        client = GcsClient(address=self.cluster.address)
        accepted, words = client.drain_node(self.workers[0].node_id, reason, "spot", deadline)
        assert accepted, words


@contextmanager
def bucket_server() -> Iterator[Bucket]:
    """A bucket in this process."""
    from pipeline.artifacts import s3

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    with moto_server() as address:
        s3.client(address, "us-east-1").create_bucket(Bucket="bucket")
        server = Bucket(address)
        yield server
        server.proxy.close()


@contextmanager
def mlflow_server(home: Path) -> Iterator[Mlflow]:
    """An MLflow server in a process of its own."""
    with tracking_server(home, HERE, free_port()) as address:
        server = Mlflow(address)
        yield server
        server.proxy.close()


@contextmanager
def ray_nodes() -> Iterator[Nodes]:
    """A cluster of Ray nodes."""
    nodes = Nodes()
    try:
        yield nodes
    finally:
        nodes.cluster.shutdown()
