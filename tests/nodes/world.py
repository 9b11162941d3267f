"""Nodes of a Ray cluster on this machine that share nothing but a bucket and a tracking server.

Each has a mount namespace of its own, in which the home, temporary and shared-memory directories are empty and this
repository is hidden, a name of its own, and a network namespace with an address on a bridge. What runs is the Python
of the tests, as an image has it; the code comes with the job. Needs root.
"""

import os
import secrets
import shlex
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.artifacts import s3
from pipeline.artifacts.store import Store, open_store
from tests.nodes.runs import HOME, Run
from tests.s3.servers import CREDENTIALS, wait_for
from tests.support import ROOT
from tests.tracking_server import tracking_server

NETWORK = f"10.{20 + os.getpid() % 200}.7"
NAME = f"puma{os.getpid() % 10_000}"  # of an interface, which takes 15 letters
TOKEN = secrets.token_hex(16)
AUTHENTICATION = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
START_SECONDS = 180
ASIDE = "/mnt"
"""A directory of every system, where Python waits while what it lies in is hidden."""
READY = ".ready"
"""A file in the home directory of a node from which all is hidden that is to be."""
TRAINING, EMBEDDING = "RayTrainWorker", "MapWorker"
"""What Ray calls the actors of a training, and those of a pool that holds models."""
MLFLOW_PORT = 5000


@dataclass(frozen=True)
class Ran:
    """What came of a run: what it said, the nodes that trained and that embedded, and how long it took."""

    said: str
    trained: set[int]
    embedded: set[int]
    seconds: float


@dataclass
class Nodes:
    """The running cluster.

    Attributes:
        bucket: the address of the S3 server.
        tracking: the address of the MLflow server.
        logs: a directory of the nodes' own words.
        until: closed at the end of the cluster, whose nodes it ends.
        cpus: that each node gives Ray.
        processes: of the nodes, the head first.
    """

    bucket: str
    tracking: str
    logs: Path
    until: ExitStack
    cpus: int
    processes: list[subprocess.Popen] = field(default_factory=list)

    def add(self, given: Mapping[str, Path]) -> None:
        """One more node, the first one as the head; `given` is what its home directory holds, by name."""
        node = len(self.processes)
        self.until.enter_context(network(node))
        script = "\n".join([*hidden_places(node, given), ray_start(node, self.cpus)])
        self.processes.append(self.until.enter_context(started(node, script, self)))
        deadline = time.monotonic() + START_SECONDS
        while READY not in self.inside(node, f"ls -A {HOME}"):  # until then it sees all that this machine has
            assert time.monotonic() < deadline, (self.logs / f"node{node}.log").read_text()[-4000:]
            time.sleep(0.1)

    @property
    def store(self) -> Store:
        """What all nodes share."""
        return open_store("s3://bucket/puma", self.bucket)

    def submit(self, *command: str, seconds: int = 1500) -> str:
        """What a job says: `python pipeline/run.py …` on the head, in a copy of this repository's directory."""
        submitted = [sys.executable, "-m", "ray.scripts.scripts", *job(*command)]
        environment = {**os.environ, **AUTHENTICATION}
        done = subprocess.run(submitted, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds)
        assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def run(self, run: Run) -> Ran:
        """A run of the pipeline with its store in the bucket."""
        before, begun = (self.actors(TRAINING), self.actors(EMBEDDING)), time.monotonic()
        said = self.submit(*program(run.recipe, "bucket", bridge_address()), *run.settings)
        trained, embedded = self.actors(TRAINING) - before[0], self.actors(EMBEDDING) - before[1]
        return Ran(said, set(trained), set(embedded), time.monotonic() - begun)

    def actors(self, kind: str) -> Counter[int]:
        """How often the logs of each node's Ray name a new actor of a kind so far."""
        found = f"grep -rhs '^:actor_name:{kind}' /tmp/ray/session_latest/logs | wc -l"
        return Counter({node: int(self.inside(node, found)) for node in range(len(self.processes))})

    def inside(self, node: int, command: str) -> str:
        """What a shell on a node answers."""
        inside = ["nsenter", "--mount", "--net", "--target", str(self.processes[node].pid), "sh", "-c", command]
        return subprocess.run(inside, capture_output=True, text=True, check=True).stdout


def program(recipe: str, bucket: str, mlflow: str) -> list[str]:
    """The words of a run that keeps all that it makes in a bucket, and tracks on a host."""
    place = [f"store=s3://{bucket}/puma", f"tracking_uri=http://{mlflow}:{MLFLOW_PORT}"]
    return ["python", "pipeline/run.py", "--recipe", recipe, *place]


def job(*command: str) -> list[str]:
    """The words that `ray` submits a command with, in this repository's directory."""
    return ["job", "submit", "--address", f"http://{address_of(0)}:8265", "--working-dir", ".", "--", *command]


def address_of(node: int) -> str:
    """The node's own, behind that of the bridge."""
    return f"{NETWORK}.{node + 2}"


def bridge_address() -> str:
    """Where the bucket and the tracking server listen."""
    return f"{NETWORK}.1"


@contextmanager
def nodes(count: int, directory: Path, given: Mapping[str, Path], cpus: int = 3) -> Iterator[Nodes]:
    """A cluster of `count` nodes.

    Args:
        directory: for logs, hidden from the nodes.
        given: what the head's home directory holds, by name, and no other node's.
        cpus: that each node gives Ray.
    """
    with ExitStack() as stack:
        stack.enter_context(bridge())
        bucket = stack.enter_context(bucket_at(bridge_address(), directory))
        tracking = stack.enter_context(tracking_server(directory, bridge_address(), MLFLOW_PORT))
        cluster = Nodes(bucket, tracking, directory, stack, cpus)
        cluster.add(given)
        wait_for_head(cluster.processes[0], directory)
        for _ in range(1, count):
            cluster.add({})
        yield cluster


def hidden_places(node: int, given: Mapping[str, Path]) -> list[str]:
    """The lines of a shell that leave a node nothing of this machine's but its system and its Python.

    A checkout is hidden whole, with the store of a run from it, and so is what lies below HOME: Python, which may lie
    in either, is put back afterwards.
    """
    python = shlex.quote(sys.prefix)
    lines = ["set -e", f"mount --bind {python} {ASIDE}", f"mount -t tmpfs tmpfs {HOME}", f"hostname node{node}"]
    lines += [f"printf '127.0.0.1 localhost\\n{address_of(node)} node{node}\\n' > {HOME}/.hosts"]
    lines += [f"mount --bind {HOME}/.hosts /etc/hosts"]
    lines += [f"cp -r {shlex.quote(str(path))} {HOME}/{name}" for name, path in given.items()]
    checkouts = [place for place in {ROOT, Path(sys.prefix).parent} if (place / "pipeline").is_dir()]
    rooms = [*checkouts, *(Path.home() / name for name in (".cache", ".ray"))]
    lines += [f"mount -t tmpfs tmpfs {shlex.quote(str(room))}" for room in rooms if room.is_dir()]
    lines += [f"mount -t tmpfs -o size=4g tmpfs {place}" for place in ("/var/tmp", "/dev/shm", "/tmp")]
    return [*lines, f"mkdir -p {python}", f"mount --bind {ASIDE} {python}", f"touch {HOME}/{READY}"]


def ray_start(node: int, cpus: int) -> str:
    """The command of a node's Ray, which the shell becomes."""
    where = f"--head --port 6379 --dashboard-host {address_of(0)}" if not node else f"--address {address_of(0)}:6379"
    size = f"--num-cpus {cpus} --object-store-memory {200 * 2**20}"
    ray = f"python -m ray.scripts.scripts start {where} --node-ip-address {address_of(node)} {size} --block"
    return f"cd {HOME}; exec {ray}"


@contextmanager
def started(node: int, script: str, cluster: Nodes) -> Iterator[subprocess.Popen]:
    """A node, until the block ends; its processes end with the first one of its process namespace."""
    environment = {name: value for name, value in os.environ.items() if name in ("LANG", "OMP_NUM_THREADS")}
    environment |= CREDENTIALS | {
        "HOME": HOME,
        "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
        "AWS_ENDPOINT_URL": cluster.bucket,
        **AUTHENTICATION,
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    spaces = [
        "ip",
        "netns",
        "exec",
        f"{NAME}n{node}",
        "unshare",
        "--mount",
        "--uts",
        "--pid",
        "--fork",
        "--kill-child",
    ]
    with (cluster.logs / f"node{node}.log").open("w") as log:
        process = subprocess.Popen(
            [*spaces, "--mount-proc", "sh", "-c", script], env=environment, stdout=log, stderr=log
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def wait_for_head(process: subprocess.Popen, directory: Path) -> None:
    """Until jobs can be submitted."""
    request = urllib.request.Request(
        f"http://{address_of(0)}:8265/api/version", headers={"Authorization": f"Bearer {TOKEN}"}
    )
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(request, timeout=5)
            return
        except OSError:
            time.sleep(1)
    raise AssertionError((directory / "node0.log").read_text()[-4000:])


@contextmanager
def bucket_at(host: str, directory: Path) -> Iterator[str]:
    """An S3 server in a process of its own with an empty `bucket`; its address."""
    port, address = "9000", f"http://{host}:9000"
    with (directory / "bucket.log").open("w") as log:
        command = [sys.executable, "-m", "moto.server", "-H", host, "-p", port]
        server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_for(address, server)
            s3.client(address, "us-east-1").create_bucket(Bucket="bucket")
            yield address
        finally:
            server.kill()
            server.wait()


@contextmanager
def bridge() -> Iterator[None]:
    """The wire that the nodes and the servers hang on."""
    ip(f"link add {NAME} type bridge")
    try:
        ip(f"address add {NETWORK}.1/24 dev {NAME}")
        ip(f"link set {NAME} up")
        yield
    finally:
        ip(f"link delete {NAME}")


@contextmanager
def network(node: int) -> Iterator[None]:
    """A network namespace with an address on the bridge."""
    space, outside, inside = f"{NAME}n{node}", f"{NAME}o{node}", f"{NAME}i{node}"
    ip(f"netns add {space}")
    try:
        ip(f"link add {outside} type veth peer name {inside}")
        ip(f"link set {outside} master {NAME} up")
        ip(f"link set {inside} netns {space}")
        ip(f"-n {space} address add {address_of(node)}/24 dev {inside}")
        ip(f"-n {space} link set {inside} up")
        ip(f"-n {space} link set lo up")
        yield
    finally:
        ip(f"netns delete {space}")


def ip(arguments: str) -> None:
    """`ip` of iproute2."""
    subprocess.run(["ip", *arguments.split()], check=True, capture_output=True)
