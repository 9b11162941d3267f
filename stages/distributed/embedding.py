"""Vectors for a Ray Data stream of queries or candidates, by a pool of actors that each hold the model once.

features, index and evaluate all embed through here, so a vector never depends on the stage that made it. Ray Data's
`build_processor` with vLLM was the alternative; it gives pooled outputs on GPUs only, and this runs anywhere.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stages.contract.context import Artifact, Context, StageError
from stages.contract.params import Cluster

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    import ray.data

Side = Literal["query", "candidate"]
WINDOW = 4  # model batches that an actor gets at once, so that it seldom waits for the next table


def embed_rows(context: Context, dataset: "ray.data.Dataset", *, model: Path, side: Side) -> "ray.data.Dataset":
    """Adds the column `vector` (fixed_size_list<float16>, unit length) to every row; other columns pass through.

    Args:
        dataset: rows with `text` and `image_id`; queries also `dataset_id`, `modality` and `target_modality`.
        model: directory of the model, readable on every node.
        side: queries get the first instruction of their task before the text, candidates get none.
    """
    return map_with_models(context, dataset, Embedder, model=model, side=side)


def map_with_models(
    context: Context, dataset: "ray.data.Dataset", actor: type, **arguments: Any
) -> "ray.data.Dataset":
    """Maps tables through a pool of actors that each load a model once.

    Args:
        actor: a class that is made with `ingest`, `cluster` and `arguments`, and called with tables.
    """
    shared = {"ingest": context.inputs["ingest"], "cluster": context.cluster}
    return dataset.map_batches(
        actor,
        fn_constructor_kwargs=shared | arguments,
        batch_size=context.cluster.batch_size * WINDOW,
        batch_format="pyarrow",
        **pool_of(context.cluster),
    )


def pool_of(cluster: Cluster) -> dict[str, Any]:
    """The arguments of `map_batches` that ask for the pool of actors."""
    from ray.data import ActorPoolStrategy

    actors, resources = pool_size(cluster)
    return {"compute": ActorPoolStrategy(size=actors), **resources}


def pool_size(cluster: Cluster) -> tuple[int, dict[str, float]]:
    """Number of actors and what each reserves.

    On CPU one core stays free to read and write: actors on every core make Ray Data wait for itself (ray #44687).
    """
    import ray

    if cluster.gpus_per_worker > 0:
        return cluster.actors, {"num_gpus": cluster.gpus_per_worker}
    cores = int(ray.cluster_resources().get("CPU", 1))
    return max(1, min(cluster.actors, cores - 1)), {"num_cpus": 1.0 if cores > 1 else 0.5}


def load_encoder(model: Path, cluster: Cluster) -> Any:
    """The encoder of `model` on this process's device, with its share of the cores."""
    # Idle OpenMP threads spin by default: two of them beside another busy process made a query 35 times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch
    from transformers.utils import logging

    from stages.model.encoder import Encoder

    logging.disable_progress_bar()  # one for each actor and model load says nothing about the stage's progress
    device = "cuda" if cluster.gpus_per_worker > 0 else "cpu"
    if device == "cpu":
        torch.set_num_threads(cluster.threads_each(cluster.actors))
    return Encoder.load(model, precision=cluster.chosen_precision(), device=device)


class RowReader:
    """Turns stored rows into the encoder's rows: instruction joined to the text, image bytes looked up by id."""

    def __init__(self, ingest: Artifact, side: Side) -> None:
        from stages.data.instructions import Instructions
        from stages.data.tables import MappedTable

        self.images = MappedTable.open(ingest, "images", "image_id")
        self.instructions = Instructions.load(ingest) if side == "query" else None

    def read(self, row: dict[str, Any]) -> Any:
        """The encoder's Row for one stored row."""
        from stages.data.instructions import with_instruction
        from stages.model.encoder import Row

        text = row["text"]
        if self.instructions is not None:
            told = self.instructions.choose(row["dataset_id"], row["modality"], row["target_modality"], pick=0)
            text = with_instruction(told, text)
        image = row["image_id"]
        return Row(text, self.images.row(self.images.find(image))["bytes"] if image is not None else None)


class Embedder:
    """The actor: one model load, then a table in and the same table with vectors out."""

    def __init__(self, ingest: Artifact, model: Path, side: Side, cluster: Cluster) -> None:
        self.reader = RowReader(ingest, side)
        self.encoder = load_encoder(model, cluster)
        self.model = model
        self.batch_size = cluster.batch_size

    def __call__(self, table: "pa.Table") -> "pa.Table":
        used = ("text", "image_id", "dataset_id", "modality", "target_modality")
        stored = table.select([name for name in used if name in table.column_names]).to_pylist()
        vectors_ND = self.encoder.encode([self.reader.read(row) for row in stored], self.batch_size)
        return table.append_column("vector", vector_column(vectors_ND, str(self.model)))


def vector_column(vectors_ND: "np.ndarray", model: str) -> "pa.Array":
    """The rows of a float matrix [N, D] as fixed_size_list<float16>[D].

    Raises:
        StageError: a value is not finite. Such a vector would rank nowhere without a word.
    """
    import numpy as np
    import pyarrow as pa

    if not np.isfinite(vectors_ND).all():
        raise StageError(f"{model} gives vectors that are not finite; train it again with a lower learning rate")
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors_ND.astype(np.float16).reshape(-1)), vectors_ND.shape[1])
