"""What a run needs of its machines, asked before anything runs: a refusal after days of training is the dearest one.

    library of the index   when planning, where the artifact of ingest or the files of an M-BEIR source tell how many
                           candidates there are; else right after ingest
    GPUs, memory           when planning, of this machine; a cluster that was given is asked when the run joins it

Memory is known as far as the teacher's weights lie here: stages that read the whole of it hold at least those.
"""

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts.store import Artifact, Store
from pipeline.config.checks import check_made
from pipeline.execution.cluster import gpus_asked, inside_cluster
from pipeline.planning.dag import trains_backbone
from pipeline.planning.plan import Decision
from stages.contract.context import InputError
from stages.search.choice import FEW, choose

if TYPE_CHECKING:
    from pipeline.config.sections import Config

TRAINING, EMBEDDING = ("distill", "train"), ("features", "index", "evaluate")
BYTES = {"fp32": 4, "bf16": 2}


def check_needs(config: "Config", decisions: Sequence[Decision], store: Store) -> None:
    """Raises InputError, one line with the numbers, for what the stages that are to run need and is not here."""
    running = {decision.stage for decision in decisions if decision.action == "run"}
    if "index" in running:
        choose(config.index.backend, *candidates(config, decisions, store), precision=config.index.precision)
    if not inside_cluster():
        check_gpus(config, running)
        check_memory(config, running)


def check_artifact(config: "Config", decisions: Sequence[Decision], stage: str, artifact: Artifact) -> None:
    """What only an artifact tells: the depth of a backbone, and how large the index will be. Raises InputError."""
    check_made(config, stage, artifact.manifest)
    if stage == "ingest" and any(one.stage == "index" and one.action == "run" for one in decisions):
        choose(config.index.backend, ingested(artifact, config.index.split), precision=config.index.precision)


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
    trains = set(TRAINING) & set(running) or ("backbone" in running and trains_backbone(config))
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


def visible_gpus() -> int:
    """The GPUs of this machine that a run may use."""
    import torch

    return torch.cuda.device_count()


def check_memory(config: "Config", running: Collection[str]) -> None:
    """The whole teacher fits where it is read whole, as often as it is loaded there at a time."""
    reading = [name for name in whole_teacher(config) if name in running]
    parameters = count_parameters(config.backbone) if reading else 0
    if not parameters:
        return
    precision, share = config.cluster.chosen_precision(), config.cluster.gpus_per_worker
    loaded = max(getattr(config.cluster, kind) for kind in kinds(config, reading))
    if share:
        loaded = min(loaded, max(1, int(1 / share)))
    needed, there = loaded * parameters * BYTES[precision], gpu_bytes() if share else machine_bytes()
    if needed > there:
        raise InputError(
            f"{', '.join(reading)}: {loaded} × {parameters / 1e9:.2f} billion parameters of {config.backbone.model} in"
            f" {precision} are {needed / 1e9:.1f} GB, {'a GPU' if share else 'this machine'} has {there / 1e9:.1f} GB;"
            " choose fewer cluster.actors or workers, a smaller backbone.model, or machines with more"
        )


def whole_teacher(config: "Config") -> list[str]:
    """The stages that load every layer of the backbone."""
    tuned = ["backbone"] if trains_backbone(config) else []
    return [*tuned, "features", *(["evaluate"] if config.evaluate.teacher else [])]


def count_parameters(backbone: Any) -> int:
    """Parameters of a checkpoint from outside whose files are on this machine, without its head; 0 where not known."""
    directory = weights_of(backbone)
    files = sorted(directory.glob("*.safetensors")) if directory else []
    if not files:
        return 0
    from math import prod

    from safetensors import safe_open

    total = 0
    for path in files:
        with safe_open(path, framework="np") as file:
            names = [name for name in file.keys() if not name.startswith("lm_head.")]  # noqa: SIM118 - no mapping
            total += sum(prod(file.get_slice(name).get_shape()) for name in names)
    return total


def weights_of(backbone: Any) -> Path | None:
    """Where the files of a backbone from outside lie, if they are here."""
    if backbone.source == "local":
        return Path(backbone.model).expanduser()
    if backbone.source != "hub":
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(backbone.model, "config.json", revision=backbone.revision)
    return Path(found).parent if isinstance(found, str) else None


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
