"""The candidates of the evaluation pools: which of them are embedded, and whether all of them arrived."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from stages.contract.context import Attempt, Context, StageError
from stages.distributed.actors import STUDENT, Work, carry_out
from stages.distributed.embedding import embed_table
from stages.distributed.shards import Target, cut, files, shard_work
from stages.model import checkpoint
from stages.search.filters import keep_pools

if TYPE_CHECKING:
    import pyarrow as pa

EMBEDDINGS = "embeddings"
CANDIDATE_COLUMNS = ["did", "dataset_id", "modality", "text", "image_id", "pools"]


def embed_pools(context: Context, summary: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Embeds the candidates of the summary's pools into `prefix/`, shard by shard; see `written` and `rate`."""
    work = student_work(context, prefix, summary["pools"])
    carry_out(context, {STUDENT: checkpoint.place(context.inputs["train"])}, work, label="index")
    return written(context.output, prefix, summary["rows"]) | {"computed": len(work)}


def student_work(context: Context, prefix: str, pools: Iterable[str]) -> list[Work]:
    """The work that embeds the candidates of the pools with the student, into `prefix/` of the artifact."""
    ingest = context.inputs["ingest"]
    return shard_work(
        [Target(context.output, prefix, without_content)],
        cut(ingest, "candidates", context.cluster.rows_per_shard),
        ingest,
        partial(embed_table, model=STUDENT, side="candidate"),
        columns=CANDIDATE_COLUMNS,
        keep=partial(keep_pools, pools=sorted(pools)),
    )


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


def rate(made: Mapping[str, Any], rows: int, seconds: float) -> dict[str, float]:
    """Rows embedded each second, as a metric; nothing where a killed run or another had embedded a part of them.

    Args:
        made: `files` as `written` gives them, and `computed`, how many of these this run has computed.
    """
    return {"rows_per_second": rows / seconds} if made["computed"] == len(made["files"]) else {}
