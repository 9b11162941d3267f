"""What a run needs of its machines, asked before anything runs: a refusal after days of training is the dearest one.

library of the index   when planning, where the artifact of ingest or the files of an M-BEIR source tell how many
                       candidates there are; else right after ingest
rows for a batch       when planning, where the artifact of ingest is there; else right after ingest
GPUs, memory           when planning, of this machine; of a given cluster when the run joins it (joining.py)
"""

import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.artifacts.store import Artifact, Store
from pipeline.config.checks import check_made
from pipeline.execution.cluster import gpus_asked, inside_cluster
from pipeline.execution.memory import EMBEDDING, Room, check_room, held_by, sizes_of
from pipeline.planning.dag import OWN_DATA, trains_backbone
from pipeline.planning.plan import Decision
from stages.contract.context import InputError
from stages.search.choice import FEW, choose

if TYPE_CHECKING:
    from pipeline.config.sections import Config
    from stages.contract.params import Cluster
    from stages.learn.settings import Training

PROCESS = 200_000_000
"""Bytes of a process that has imported torch and done nothing else, rounded down from what one had on Linux."""


def check_needs(config: "Config", decisions: Sequence[Decision], store: Store) -> None:
    """Raises InputError, one line with the numbers, for what the stages that are to run need and is not here."""
    running = {decision.stage for decision in decisions if decision.action == "run"}
    for decision in decisions:
        if decision.action == "cached" and decision.stage in ("ingest", OWN_DATA):
            check_rows(config, running, decision.stage, store.artifact(decision.stage, decision.key))
    if "index" in running:
        choose(config.index.backend, *candidates(config, decisions, store), precision=config.index.precision)
    if inside_cluster():
        return
    check_gpus(config, running)
    if sizes := sizes_of(config.backbone) if made_from_backbone(decisions) else None:
        check_room(config, [*held_by(config, running, sizes)], this_machine(config.cluster))
    check_processes(config, running)


def made_from_backbone(decisions: Sequence[Decision]) -> bool:
    """Whether the run's models come from its backbone; a user's corpus is indexed by a student that is there."""
    return any(decision.stage == "backbone" for decision in decisions)


def check_artifact(config: "Config", decisions: Sequence[Decision], stage: str, artifact: Artifact) -> None:
    """What only an artifact tells: how deep a backbone is, how many rows there are. Raises InputError."""
    running = {decision.stage for decision in decisions if decision.action == "run"}
    check_made(config, stage, artifact.manifest)
    check_rows(config, running, stage, artifact)
    if stage == "ingest" and "index" in running:
        choose(config.index.backend, ingested(artifact, config.index.split), precision=config.index.precision)


def check_rows(config: "Config", running: Collection[str], stage: str, artifact: Artifact) -> None:
    """Each training that is to run on the data of `stage` has rows for a batch."""
    sizes: dict[str, tuple[int, int]] = {}
    for path, settings in trainings(config, running, stage):
        rows = rows_to_train_on(artifact, settings.smallest_task)
        if rows < settings.batch_size:
            sizes[f"{path}.batch_size"] = settings.batch_size, rows
    if not sizes:
        return
    data, rows = config.distill.data if stage == OWN_DATA else config.data, min(rows for _, rows in sizes.values())
    given = f"{data.section}.path={data.path}" if data.path else f"{data.section}.kind={data.kind}"
    asked = " and ".join(f"{path}={size}" for path, (size, _) in sizes.items())
    fits = rows - rows % config.cluster.workers  # shared evenly, and two at least
    lower = f"set {' '.join(f'{path}={fits}' for path in sizes)}, or " if fits > 1 else ""
    raise InputError(f"{given} has too few rows to train on, {rows}, for {asked}; {lower}give more data")


def trainings(config: "Config", running: Collection[str], data: str) -> Iterator[tuple[str, "Training"]]:
    """(section, settings) of the trainings that are to run on the artifact of the stage `data`."""
    backbone = config.backbone
    name = "tiny" if backbone.source == "tiny" else "tune"
    found: list[tuple[str, str, Training]] = [
        ("backbone", f"backbone.{name}", getattr(backbone, name)),
        ("distill", "distill", config.distill),
        ("train", "train", config.train),
    ]
    for stage, path, settings in found:
        reads = OWN_DATA if stage == "distill" and config.distill.data.kind else "ingest"
        if stage in running and reads == data and settings.steps:
            yield path, settings


def rows_to_train_on(artifact: Artifact, smallest_task: int) -> int:
    """Samples of an epoch, as `stages.data.order.upsampled` has them."""
    tasks = artifact.read_json("stats.json")["queries"]["by_task"]["train"].values()
    return sum(max(task["queries"], smallest_task) for task in tasks)


def candidates(config: "Config", decisions: Sequence[Decision], store: Store) -> tuple[int, bool]:
    """(how many candidates will be indexed, whether there may be more); 0 where nothing tells yet."""
    ingest = next((one for one in decisions if one.stage == "ingest"), None)
    if ingest and ingest.action == "cached":
        return ingested(store.artifact("ingest", ingest.key), config.index.split), False
    if ingest and config.data.kind == "mbeir" and config.index.backend == "auto":
        from stages.data.sources.counting import count_candidates
        from stages.data.sources.remote import source

        return count_candidates(source(config.data.path), config.index.split, FEW), True
    return 0, True


def ingested(ingest: Artifact, split: str) -> int:
    """Candidates in the union pool of a split, which holds at least those of the other pools that are asked of."""
    return ingest.read_json("stats.json").get("pools", {}).get(f"union_{split}", 0)


def kinds(config: "Config", running: Collection[str]) -> list[str]:
    """The settings that say how many processes with a model of their own the stages start."""
    trains = {"distill", "train"} & set(running) or ("backbone" in running and trains_backbone(config))
    embeds = set(EMBEDDING) & set(running)
    return [*(["workers"] if trains else []), *(["actors"] if embeds else [])]


def check_gpus(config: "Config", running: Collection[str]) -> None:
    """This machine has the GPUs that are asked for."""
    counted = kinds(config, running)
    asked, words = gpus_asked(config.cluster, counted) if counted else (0, "")
    if asked and asked > (here := visible_gpus()):
        raise InputError(
            f"{words}, this machine has {here}; choose fewer, cluster.gpus_per_worker=0 for the CPU, or a cluster"
            " that has them (docs/cluster.md)"
        )


def check_processes(config: "Config", running: Collection[str]) -> None:
    """This machine has memory for that many processes, whatever their models."""
    for name in kinds(config, running):
        count, there = getattr(config.cluster, name), machine_bytes()
        if count * PROCESS > there:
            raise InputError(
                f"cluster.{name}={count} are more processes than fit into this machine's {there / 1e9:.0f} GB, at"
                f" {PROCESS / 1e9:.1f} GB each before any model; choose fewer, or a cluster (docs/cluster.md)"
            )


def visible_gpus() -> int:
    """The GPUs of this machine that a run may use."""
    import torch

    return torch.cuda.device_count()


def this_machine(cluster: "Cluster") -> Room:
    """Where this machine holds models: in its memory, or in that of its GPUs."""
    if cluster.gpus_per_worker:
        return Room([gpu_bytes()], "a GPU", "a GPU")
    return Room([machine_bytes()], "this machine", "this machine")


def machine_bytes() -> int:
    """The memory that this process may use: the machine's, or its container's."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(whole, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no container, or one without a limit: "max"
        return whole


def gpu_bytes() -> int:
    """The memory of this machine's first GPU."""
    import torch

    return torch.cuda.get_device_properties(0).total_memory
