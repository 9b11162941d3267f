"""index: embed the candidates of the evaluation pools and build the index.

Inputs: ingest (candidates, pictures), train (the student). Steps: find which pools the split's queries are asked of;
send the candidates of those pools through a pool of embedding actors, shard by shard; check that every one arrived;
describe the index in `retriever.json`. Candidates of no pool are left out: nothing searches them. `index.precision`
has vectors stored in fewer bytes.

With `index.candidates=teacher` backbone (the teacher) and features (the layer that taught) are inputs too. The
candidates' vectors are the teacher's then, read once for all its students, and only queries go through the student
(LEAF, 2025, arXiv 2509.12539). A student whose training has left its teacher finds nothing there.
"""

import time
from functools import partial
from typing import Any, Literal

from pydantic import Field

from stages.contract.context import Artifact, Context, StageError
from stages.contract.params import Section
from stages.data.sources.columns import IndexColumns

VERSION = 1


class Params(Section):
    """The section `index`."""

    backend: Literal["auto", "exact", "lance", "faiss"] = Field(
        "auto", description="what answers searches; auto is exact below 100,000 candidates and lance above"
    )
    candidates: Literal["student", "teacher"] = Field(
        "student",
        description="whose vectors the candidates have: the student's, or the teacher's at the layer that taught,"
        " which only a student finds that stayed aligned with it",
    )
    corpus: str = Field(
        "",
        description="own corpus to index instead, with student.model: a folder of pictures, texts or both, a text,"
        " a JSONL, CSV or TSV, on disk or below s3://bucket/",
    )
    columns: IndexColumns = IndexColumns()
    precision: Literal["float16", "int8", "binary"] = Field(
        "float16",
        description="of the stored vectors: int8 takes half the bytes of float16, binary a sixteenth; what each loses"
        " is a table of evaluate",
    )
    split: Literal["val", "test"] = Field("test", description="the pools of this split are embedded")


def unused_modules(params: Params) -> tuple[str, ...]:
    """faiss makes its index from the stored vectors when it is asked, and nothing here; the teacher may stay out."""
    teacher = tuple(f"stages.distributed.{name}" for name in ("teacher", "teacher_pools", "rotation"))
    unread = (*teacher, "stages.model.identity") if params.candidates == "student" else ()
    return ("stages.search.faiss_index", *unread)


def run(context: Context) -> dict[str, float | dict]:
    """Runs the stage; see the module header."""
    from stages.distributed.pools import rate
    from stages.distributed.smaller import store
    from stages.search.backends import build, choose

    params, ingest = context.params.index, context.inputs["ingest"]
    summary = summarise_pools(ingest, params.split)
    backend = choose(params.backend, summary["rows"], precision=params.precision)
    start = time.monotonic()
    written, precision = store(context.output, params.precision, summary["rows"], partial(embed, context, summary))
    seconds = time.monotonic() - start
    made = build(context.output, backend, written["files"])
    context.output.write_json("retriever.json", describe(context, summary, written["dim"]) | precision | made)
    return {
        "rows": summary["rows"],
        **rate(written, summary["rows"], seconds),
        "bytes": written["bytes"],
        "pools": summary["pools"],
    }


def embed(context: Context, summary: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Writes the vectors of the pools' candidates to `prefix/`; see `pools.written` and `rate`."""
    if context.params.index.candidates == "student":
        from stages.distributed.pools import embed_pools

        return embed_pools(context, summary, prefix)
    from stages.distributed.teacher import taught
    from stages.distributed.teacher_pools import copy_pools

    summary = {**summary, "split": context.params.index.split}
    return copy_pools(context, summary, taught(context.inputs["features"]), prefix)


def summarise_pools(ingest: Artifact, split: str) -> dict[str, Any]:
    """Sizes of the split's pools, candidates in any of them, and their modalities, from one light pass.

    Raises:
        StageError: a pool that queries name has no candidate.
    """
    import pyarrow.dataset

    from stages.evaluation.sets import pools_of, union_pool

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


def describe(context: Context, summary: dict[str, Any], dim: int) -> dict[str, Any]:
    """The content of `retriever.json`: all that a searcher needs to know."""
    from stages.data.instructions import Instructions
    from stages.evaluation.sets import union_pool
    from stages.search.backends import FORMAT

    params, ingest, train = context.params.index, context.inputs["ingest"], context.inputs["train"]
    union = union_pool(params.split)
    return {
        "format": FORMAT,
        "dim": dim,
        "rows": summary["rows"],
        "split": params.split,
        "pools": summary["pools"],
        "union": union if union in summary["pools"] else None,
        "modalities": summary["modalities"],
        "instructions": Instructions.load(ingest).to_json(),
        "train": reference(train),
        "ingest": reference(ingest),
        "candidates": candidate_model(context),
    }


def candidate_model(context: Context) -> dict[str, Any]:
    """Which model the candidates' vectors are from, as the card names it; queries are always the student's."""
    if context.params.index.candidates == "student":
        return {"model": "student", **reference(context.inputs["train"])}
    from stages.distributed.rotation import read_rotation
    from stages.distributed.teacher import taught
    from stages.model import checkpoint
    from stages.model.identity import identify

    teacher, read = context.inputs["backbone"], taught(context.inputs["features"])
    known = {"layer": read.layer, "mean": list(read.mean), "identity": identify(checkpoint.directory(teacher))}
    known["turned"] = read_rotation(context.inputs["train"]) is not None
    return {"model": "teacher", **reference(teacher), **known}


def reference(artifact: Artifact) -> dict[str, Any]:
    """How another artifact names this one."""
    return {"key": artifact.key, "attempt": artifact.manifest.get("attempt"), "uri": artifact.uri}
