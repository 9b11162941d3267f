"""The candidates of the evaluation pools: which of them are embedded, and whether all of them arrived."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.contract.context import Attempt, Context, StageError
from stages.distributed.embedding import Embedder
from stages.distributed.shards import cut, files, map_shards
from stages.search.filters import keep_pools

if TYPE_CHECKING:
    import pyarrow as pa

CANDIDATE_COLUMNS = ["did", "dataset_id", "modality", "text", "image_id", "pools"]


def embed_pools(context: Context, name: str, summary: dict[str, Any], model: Path, params: Any) -> dict[str, Any]:
    """Embeds the candidates of the summary's pools into `name/` of the output, shard by shard; see `written`.

    Args:
        params: a section with `rows_per_shard` and `batch_size`.
    """
    ingest = context.inputs["ingest"]
    map_shards(
        context, name, cut(ingest, "candidates", params.rows_per_shard), ingest, Embedder,
        columns=CANDIDATE_COLUMNS,
        keep=partial(keep_pools, pools=sorted(summary["pools"])), finish=without_content,
        model=model, side="candidate", batch_size=params.batch_size,
    )  # fmt: skip
    return written(context.output, name, summary["rows"])


def without_content(table: "pa.Table") -> "pa.Table":
    """The columns of EMBEDDINGS."""
    return table.drop_columns(["text", "image_id"])


def written(output: Attempt, name: str, expected: int) -> dict[str, Any]:
    """Files, bytes and dim of the vectors below `name`.

    Raises:
        StageError: there are fewer or more rows than were to be embedded.
    """
    import pyarrow.parquet as pq

    paths = files(output, name)
    rows = sum(pq.read_metadata(path, filesystem=output.filesystem).num_rows for path in paths)
    if rows != expected:
        raise StageError(f"{rows} of {expected} vectors arrived at {output.base}/{name}; run the same command again")
    dim = pq.read_schema(paths[0], filesystem=output.filesystem).field("vector").type.list_size
    size = sum(info.size for info in output.filesystem.get_file_info(paths))
    return {"files": paths, "bytes": size, "dim": dim}
