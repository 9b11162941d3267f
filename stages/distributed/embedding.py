"""Vectors of queries or candidates, and the pool of actors that compute them.

index, evaluate and mining all embed through here, so a vector never depends on the stage that made it; what is read of
a teacher stands in `stages.distributed.teacher`. Ray Data's `build_processor` with vLLM was the alternative; it gives
pooled outputs on GPUs only, and this runs anywhere.
"""

from typing import TYPE_CHECKING, Any

from stages.contract.context import StageError
from stages.contract.params import Cluster
from stages.model.reader import Side

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from stages.distributed.actors import Models


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


def embed_table(models: "Models", table: "pa.Table", *, model: str, side: Side) -> "pa.Table":
    """The table with the column `vector` (fixed_size_list<float16>, unit length), by one of an actor's models.

    Args:
        table: rows with `text` and `image_id`; queries also `dataset_id`, `modality` and `target_modality`.
        side: queries get the first instruction of their task before the text, candidates get none.
    """
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
