"""What a run needs, compared with the cluster that it joins, before its first stage computes anything.

    a store in a directory   every node finds there what the driver has just written: a run's work lies beside it
    data on a disk           the driver's node gives Ray a CPU to read it by, where the store is no directory
    memory                   models fit into the nodes, or GPUs, that are there, if those are all that are asked for
    GPUs, CPUs               where there are fewer, or no node has what one process asks for, a warning: Ray tells
                             nobody whether an autoscaler may bring more

Nodes are asked by a task on each of them. One that does not answer in time is left to the stages, and so is one that
joins later.
"""

import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts.store import Store
from pipeline.execution.cluster import cpus_asked, gpus_asked, inside_cluster
from pipeline.execution.memory import EMBEDDING, TRAINING, Room, check_room, held_by, sizes_of
from pipeline.execution.needs import kinds, made_from_backbone
from pipeline.planning.dag import OWN_DATA
from pipeline.planning.plan import Decision
from stages.contract.context import InputError

if TYPE_CHECKING:
    from pipeline.config.sections import Config
    from pipeline.execution.runner import Run

WAIT = 30
"""Seconds for the nodes' answers; the first one of a node takes as long as it takes to start a process there."""
NVIDIA = ("nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits")

Node = Mapping[str, Any]


def check_cluster(config: "Config", decisions: Sequence[Decision], run: "Run") -> None:
    """Raises InputError, in one line with the numbers, for what the run needs and the cluster has not.

    Args:
        run: connected, and recorded in its store.
    """
    if not inside_cluster():
        return
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    running = {decision.stage for decision in decisions if decision.action == "run"}
    if "://" in config.store:
        check_disk(config, running, next(node for node in nodes if node["NodeID"] == driver_node()))
    else:
        check_store(run.store.record(run.id), config.store, nodes)
    if line := missing(config, kinds(config, running), nodes):
        run.say(f"warning: {line}")
    elif made_from_backbone(decisions) and running & {*TRAINING, *EMBEDDING}:
        check_memory(config, decisions, running, run.store, nodes)


def driver_node() -> str:
    """The id of the node on which this process is."""
    import ray

    return ray.get_runtime_context().get_node_id()


def check_disk(config: "Config", running: set[str], here: Node) -> None:
    """The driver's node, which alone sees its disk, has a CPU for the tasks that read what a setting names there."""
    named = {"ingest": ("data.path", config.data.path), OWN_DATA: ("distill.data.path", config.distill.data.path)}
    named["index"] = ("index.corpus", config.index.corpus)
    for stage in running & named.keys():
        setting, path = named[stage]
        drawn = stage == "ingest" and config.data.kind == "scenes"
        if (drawn or (path and "://" not in path)) and here["Resources"].get("CPU", 0) < 1:
            what = "data.kind=scenes" if drawn else f"{setting}={path}"
            raise InputError(
                f"{what} lies on the driver's node, which gives Ray no CPU to read it by; copy it to a bucket, or"
                " start that node with CPUs (ray start --num-cpus)"
            )


def check_store(record: Path, place: str, nodes: Sequence[Node]) -> None:
    """Every node sees the store's directory: each looks for `record`, which the driver has just written there."""
    if len(nodes) < 2:
        return
    blind = [address for address, seen in ask(nodes, partial(os.path.exists, str(record))).items() if not seen]
    if blind:
        raise InputError(
            f"store={place} is not the same directory on all nodes: {len(blind)} of {len(nodes)} don't see it, first"
            f" {blind[0]}; give store=s3://BUCKET/PREFIX, or a directory that all nodes share"
        )


def ask(nodes: Sequence[Node], question: Callable[[], Any]) -> dict[str, Any]:
    """{name: answer} of the nodes that answer a question in time; it takes no CPU there."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote, asked = ray.remote(num_cpus=0, max_retries=0)(lambda: question()), {}
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        name = f"{node['NodeManagerAddress']} ({node['NodeID'][:6]})"  # several may have one address
        asked[remote.options(scheduling_strategy=there).remote()] = name
    done, late = ray.wait(list(asked), num_returns=len(asked), timeout=WAIT)
    for answer in late:
        ray.cancel(answer, force=True)
    answers = {}
    for answer in done:
        try:
            answers[asked[answer]] = ray.get(answer)
        except ray.exceptions.RayError:  # the node is gone, or can't run this: a stage's error will say more
            continue
    return answers


def missing(config: "Config", counted: Sequence[str], nodes: Sequence[Node]) -> str:
    """One line where a cluster has less than a run asks for, as one that grows on demand may; else empty.

    `counted` are the settings that say how many processes with a model there will be.
    """
    if not counted:
        return ""
    cluster, places = config.cluster, [node["Resources"] for node in nodes]
    each = {"GPU": ("gpus_per_worker", cluster.gpus_per_worker)}
    asked = {"GPU": gpus_asked(cluster, counted)}
    if "workers" in counted:
        each["CPU"] = ("cpus_per_worker", cluster.cpus_per_worker)
        asked["CPU"] = cpus_asked(cluster)
    if not any(all(place.get(kind, 0) >= amount for kind, (_, amount) in each.items()) for place in places):
        wanted = " with ".join(f"cluster.{name}={amount:g}" for name, amount in each.values() if amount)
        there = ", ".join(
            f"{max(place.get(kind, 0) for place in places):g} {kind}s" for kind, (_, amount) in each.items() if amount
        )
        return f"{wanted} is one process, and no node has that (at most {there}); the run waits for one that does"
    for kind, (amount, words) in asked.items():
        if amount > (present := sum(place.get(kind, 0) for place in places)):
            return f"{words}, the cluster has {present:g} now; the run waits for the others"
    return ""


def check_memory(
    config: "Config", decisions: Sequence[Decision], running: set[str], store: Store, nodes: Sequence[Node]
) -> None:
    """The models of each stage fit into what the nodes have."""
    made = next(one for one in decisions if one.stage == "backbone")
    artifact = store.artifact("backbone", made.key) if made.action == "cached" else None
    if sizes := sizes_of(config.backbone, artifact, ask_hub=True):
        check_room(config, [*held_by(config, running, sizes)], room_of(config, nodes))


def room_of(config: "Config", nodes: Sequence[Node]) -> Room:
    """Where a cluster holds models: GPUs, as their driver tells, or what Ray hands out of the nodes' memory."""
    if config.cluster.gpus_per_worker:
        told = ask([node for node in nodes if node["Resources"].get("GPU", 0)], gpu_memory)
        return Room([size for sizes in told.values() for size in sizes], "the largest GPU", "all GPUs")
    memory = [node["Resources"] for node in nodes if node["Resources"].get("CPU", 0)]
    sizes = [int(one.get("memory", 0) + one.get("object_store_memory", 0)) for one in memory]
    if len(sizes) == 1:
        return Room(sizes, "the cluster's node", "the cluster's node")
    return Room(sizes, "the largest node", f"the cluster of {len(sizes)} nodes")


def gpu_memory() -> list[int]:
    """Bytes of each GPU of this node; none where there is no tool that tells."""
    try:
        told = subprocess.run(NVIDIA, capture_output=True, text=True, timeout=10, check=True).stdout
        return [int(line) * 2**20 for line in told.splitlines()]
    except (OSError, subprocess.SubprocessError, ValueError):
        return []
