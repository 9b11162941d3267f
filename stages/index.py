"""index: embed the candidates of the evaluation pools and build the index.

Inputs: ingest (candidates, pictures), train (the student). Steps: find which pools the split's queries are asked of;
stream the candidates of those pools through a pool of embedding actors into Parquet; check that every one arrived;
describe the index in `retriever.json`. Candidates of no pool are left out: nothing searches them.
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from stages.context import Artifact, Attempt, Context, StageError
from stages.params import Section, knob

if TYPE_CHECKING:
    import pyarrow as pa
    import ray.data

VERSION = 1
FORMAT = 1  # of retriever.json and the embeddings beside it


class Params(Section):
    """The section `index`."""

    backend: Literal["auto", "exact", "lance", "faiss"] = Field(
        "auto", description="what answers searches; auto is exact below 100,000 candidates and lance above"
    )
    corpus: str = Field(
        "", description="own corpus to index instead, with student.model: a folder of pictures, a JSONL, CSV or TSV"
    )
    split: Literal["val", "test"] = Field("test", description="the pools of this split are embedded")
    batch_size: int = knob(64, ge=1)


def run(context: Context) -> dict[str, float | dict]:
    """Runs the stage; see the module header."""
    from stages.search.backends import build, choose

    params, ingest, train = context.params.index, context.inputs["ingest"], context.inputs["train"]
    summary = summarise_pools(ingest, params.split)
    backend = choose(params.backend, summary["rows"])
    start = time.monotonic()
    corpus = embed_corpus(context, ingest, sorted(summary["pools"]), train.local("model"), params.batch_size)
    written = write_embeddings(context.output, "embeddings", corpus, summary["rows"])
    seconds = time.monotonic() - start
    made = build(context.output, backend, written["files"])
    context.output.write_json("retriever.json", describe(context, summary, written["dim"]) | made)
    return {
        "rows": summary["rows"],
        "rows_per_second": summary["rows"] / seconds,
        "bytes": written["bytes"],
        "pools": summary["pools"],
    }


def summarise_pools(ingest: Artifact, split: str) -> dict[str, Any]:
    """Sizes of the split's pools, candidates in any of them, and their modalities, from one light pass.

    Raises:
        StageError: a pool that queries name has no candidate.
    """
    import pyarrow.dataset

    from stages.search.sets import pools_of, union_pool

    named = pools_of(ingest, split)
    sizes, modalities = dict.fromkeys(sorted(named), 0), {}
    stored = pyarrow.dataset.dataset(ingest.files("candidates"), filesystem=ingest.filesystem, format="parquet")
    for batch in stored.to_batches(columns=["modality", "pools"]):
        for modality, pools in zip(batch["modality"].to_pylist(), batch["pools"].to_pylist(), strict=True):
            hit = named.intersection(pools)
            for pool in hit:
                sizes[pool] += 1
            if hit:
                modalities[modality] = modalities.get(modality, 0) + 1
    union = union_pool(split)
    empty = [name for name, size in sizes.items() if not size and name != union]
    if empty:
        raise StageError(f"pool {empty[0]} of split {split} has no candidate; check the source's candidate pools")
    if not modalities:
        raise StageError(f"no candidate belongs to a pool of split {split}; check the source's candidate pools")
    pools = {name: size for name, size in sizes.items() if size}
    return {"pools": pools, "rows": sum(modalities.values()), "modalities": modalities}


def embed_corpus(
    context: Context, ingest: Artifact, pools: list[str], model: Path, batch_size: int
) -> "ray.data.Dataset":
    """The candidates that belong to any of `pools`, with the columns of EMBEDDINGS, as a lazy stream."""
    import ray.data

    from stages.embed import embed_rows

    columns = ["did", "dataset_id", "modality", "text", "image_id", "pools"]
    stored = ray.data.read_parquet(ingest.files("candidates"), filesystem=ingest.filesystem)
    candidates = stored.select_columns(columns)
    pooled = candidates.map_batches(
        keep_pools, fn_kwargs={"pools": pools}, batch_format="pyarrow", zero_copy_batch=True
    )
    embedded = embed_rows(context, pooled, model=model, side="candidate", batch_size=batch_size)
    return embedded.drop_columns(["text", "image_id"])


def keep_pools(table: "pa.Table", pools: list[str]) -> "pa.Table":
    """The rows that belong to any of `pools`."""
    import pyarrow as pa

    wanted = set(pools)
    return table.filter(pa.array([not wanted.isdisjoint(names) for names in table["pools"].to_pylist()], pa.bool_()))


def write_embeddings(output: Attempt, name: str, corpus: "ray.data.Dataset", expected: int) -> dict[str, Any]:
    """Streams vectors to Parquet below `name`; files, bytes and dim of what arrived.

    Raises:
        StageError: fewer or more rows arrived than were to be embedded.
    """
    import pyarrow.parquet as pq
    from pyarrow.fs import FileSelector

    path = f"{output.base}/{name}"
    corpus.write_parquet(path, filesystem=output.filesystem)
    found = output.filesystem.get_file_info(FileSelector(path))
    files = sorted(item.path for item in found if item.path.endswith(".parquet"))
    rows = sum(pq.read_metadata(file, filesystem=output.filesystem).num_rows for file in files)
    if rows != expected:
        raise StageError(f"{rows} of {expected} vectors arrived at {path}; run the same command again")
    dim = pq.read_schema(files[0], filesystem=output.filesystem).field("vector").type.list_size
    return {"files": files, "bytes": sum(item.size for item in found), "dim": dim}


def describe(context: Context, summary: dict[str, Any], dim: int) -> dict[str, Any]:
    """The content of `retriever.json`: all that a searcher needs to know."""
    from stages.data.instructions import Instructions
    from stages.search.sets import union_pool

    params, ingest, train = context.params.index, context.inputs["ingest"], context.inputs["train"]
    union = union_pool(params.split)
    return {
        "format": FORMAT,
        "backend": "exact",
        "dim": dim,
        "rows": summary["rows"],
        "split": params.split,
        "pools": summary["pools"],
        "union": union if union in summary["pools"] else None,
        "modalities": summary["modalities"],
        "instructions": Instructions.load(ingest).to_json(),
        "train": reference(train),
        "ingest": reference(ingest),
    }


def reference(artifact: Artifact) -> dict[str, Any]:
    """How another artifact names this one."""
    return {"key": artifact.key, "attempt": artifact.manifest.get("attempt"), "uri": artifact.uri}
