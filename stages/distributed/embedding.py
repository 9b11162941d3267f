"""Vectors for a Ray Data stream of queries or candidates, by a pool of actors that each hold the model once.

features, index and evaluate all embed through here, so a vector never depends on the stage that made it. Ray Data's
`build_processor` with vLLM was the alternative; it gives pooled outputs on GPUs only, and this runs anywhere.
"""

from typing import TYPE_CHECKING, Any

from stages.contract.context import Artifact, Context, StageError, Where
from stages.contract.params import Cluster
from stages.model.loading import load_encoder
from stages.model.reader import RowReader, Side

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    import ray.data

    from stages.distributed.actors import Models

WINDOW = 4  # model batches that an actor gets at once, so that it seldom waits for the next table


def embed_rows(context: Context, dataset: "ray.data.Dataset", *, model: Where, side: Side) -> "ray.data.Dataset":
    """Adds the column `vector` (fixed_size_list<float16>, unit length) to every row; other columns pass through.

    Args:
        dataset: rows with `text` and `image_id`; queries also `dataset_id`, `modality` and `target_modality`.
        model: its directory, for whichever node asks.
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
    """The arguments of `map_batches` that ask for the pool of actors.

    An actor is sent one thing at a time. Of several that the first actor to come up was sent Ray may start any one: a
    timing then waited in it for work that stood behind it, for ever.
    """
    from ray.data import ActorPoolStrategy

    actors, resources = pool_size(cluster)
    return {"compute": ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=1), **resources}


def pool_size(cluster: Cluster) -> tuple[int, dict[str, float]]:
    """Number of actors and what each reserves.

    On CPU one core stays free to read and write: actors on every core make Ray Data wait for itself (ray #44687).
    """
    import ray

    if cluster.gpus_per_worker > 0:
        return cluster.actors, {"num_gpus": cluster.gpus_per_worker}
    cores = int(ray.cluster_resources().get("CPU", 1))
    return max(1, min(cluster.actors, cores - 1)), {"num_cpus": 1.0 if cores > 1 else 0.5}


class Embedder:
    """The actor: one model load, then a table in and the same table with vectors out."""

    def __init__(self, ingest: Artifact, model: Where, side: Side, cluster: Cluster) -> None:
        self.reader = RowReader(ingest, side)
        self.encoder = load_encoder(model(), cluster)
        self.batch_size = cluster.batch_size

    def __call__(self, table: "pa.Table") -> "pa.Table":
        vectors_ND = self.encoder.encode(self.reader.rows(table), self.batch_size)
        return table.append_column("vector", vector_column(vectors_ND, "the student"))


def embed_table(models: "Models", table: "pa.Table", *, model: str, side: Side) -> "pa.Table":
    """The table with the column `vector` (fixed_size_list<float16>, unit length), by one of an actor's models."""
    rows = models.reader(side).rows(table)
    vectors_ND = models.encoder(model).encode(rows, models.batch_size)
    return table.append_column("vector", vector_column(vectors_ND, f"the {model}"))


def vector_column(vectors_ND: "np.ndarray", model: str) -> "pa.Array":
    """The rows of a float matrix [N, D] as fixed_size_list<float16>[D]; `model` names whose they are.

    Raises:
        StageError: a value is not finite. Such a vector would rank nowhere without a word.
    """
    import numpy as np
    import pyarrow as pa

    if not np.isfinite(vectors_ND).all():
        raise StageError(f"{model} gives vectors that are not finite; train it again with a lower learning rate")
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors_ND.astype(np.float16).reshape(-1)), vectors_ND.shape[1])
