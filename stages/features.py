"""features: what the deep layers know, once, and how good and how costly every depth is.

Inputs: ingested pairs, the backbone, and `distill.data` where that is set. Steps: one pool of actors, each of which
loads the backbone once, reads the distillation set (the train queries that distillation will come to, and their
positives; of `distill.data` where that is set; nothing where no state is to be looked up) and keeps the chosen
layer's state at the read-out token; reads a validation sample and keeps the state after every layer, from which the
depth curve is computed; and times the backbone with its first k layers for every k, while nothing else works.
Outputs: `features/` Parquet in fp16, `features.json` (with the mean of the states, where students are to compare with
what lies beside it), `depth_curve.json`, `.md` and `.png`.

`features.teacher` has another model teach: `features/` holds its vectors then, of whatever width, and all that tells
of the depths of the backbone stays (`stages.distributed.outside`).

Rows without labels have no validation sample, and then there is no depth curve.

The teacher is read once and not in every training step, which is exact as long as a query keeps its instruction:
distillation therefore uses the first wording, as this stage does.
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from stages.contract.context import Context, StageError
from stages.contract.params import Section

if TYPE_CHECKING:
    import pyarrow as pa

    from stages.contract.context import Artifact
    from stages.distributed.actors import Models, Work

VERSION = 1
CURVE_CANDIDATES = 1000
TIMED_QUERIES = 64
"""Queries of the curve that are timed, over all depths: each depth has its share, at least four. With a fixed
number for each, the timing would grow with the square of the depth."""
WINDOW = 4
"""Model batches of the sample that an actor reads at once."""


class Params(Section):
    """The section `features`."""

    layer: int | Literal["auto"] = Field(
        -1,
        description="teacher layer that is read, after the final norm: k > 0 is the state after k layers, -1 the "
        "last; `auto` takes the one that finds best on the validation sample",
    )
    centre: bool | Literal["auto"] = Field(
        "auto",
        description="take the mean of the teacher's states off before a student is compared with them; `auto` does "
        "where layer=auto finds more without it",
    )
    teacher: str = Field(
        "",
        description="what teaches in place of the backbone's layers: a sentence-transformers directory, or Parquet of "
        "(id, vector); empty is the backbone",
    )
    curve_queries: int = Field(40, ge=1, description="validation queries of each task for the depth curve")


def check(params: Params) -> None:
    """Raises InputError where a teacher from outside is not there or can't be read."""
    if params.teacher:
        from stages.distributed import outside

        outside.check(params.teacher)


def fingerprint(params: Params) -> dict[str, list[int]] | None:
    """What identifies a teacher from outside; None where the backbone teaches."""
    from stages.distributed import outside

    return outside.fingerprint(params.teacher) if params.teacher else None


def unused_modules(params: Params) -> tuple[str, ...]:
    """What the backbone's own layers do not come to."""
    return () if params.teacher else ("stages.distributed.outside", "stages.data.vectors")


def run(context: Context) -> dict[str, Any]:
    """Runs the stage; returns its headline metrics."""
    from stages.distributed import lessons, outside
    from stages.distributed.actors import TEACHER, Work, carry_out, say
    from stages.distributed.shards import count_rows
    from stages.evaluation.depth import best_layer
    from stages.model import checkpoint

    params, backbone = context.params.features, context.inputs["backbone"]
    models, (depth, dim) = {TEACHER: checkpoint.place(backbone)}, _shape(checkpoint.settings(backbone))
    chosen, centred = params.layer, params.centre is True
    sample = _sample(context)
    reading, early = _sample_work(context, sample, depth), []
    if chosen == "auto":  # known before the distillation set is read by it, at the price of starting the pool twice
        early = carry_out(context, models, reading, label="features")
        (chosen, centred), reading = best_layer(_curve(sample, early, dim), params.centre), []
        how = "with its mean taken off" if centred else "as it is"
        say(f"features: layer {chosen} of {depth}, {how}, finds best and teaches")
    who: dict[str, Any] = {"teacher": "outside"} if params.teacher else {"layer": _teaching_layer(chosen, depth)}
    shards = lessons.reading(context, who.get("layer"))
    timed = partial(_time_depths, source=context.inputs["ingest"])
    timing = [Work(timed, {"rows": rows}) for rows in _timed_rows(sample, depth)]
    work = [*shards, *reading]
    done = carry_out(context, models, work, alone=timing, label="features")
    files = lessons.shard_counts(context)
    counts = {prefix: count_rows(context.output, prefix, count) for prefix, count in files.items()}
    rows, labelled = sum(counts.values()), sum(counts[name] for name in counts if name.startswith(lessons.LABELLED))
    width = outside.written_width(context.output, lessons.DISTILLED) if params.teacher else dim
    mean_D = lessons.mean_state(context, width) if centred else None
    mean = {} if mean_D is None else {"mean": mean_D.tolist()}
    context.output.write_json("features.json", {**who, "dim": width, "rows": rows, **mean})
    known = {"rows": rows, **who, "centred": mean_D is not None}
    known |= {"labelled": labelled} if labelled else {}
    if not timing:
        say("features: no labelled validation queries, so no depth curve")
        return known
    curve = _curve(sample, early or done[len(shards) : -1], dim)
    curve["teacher"] = {**who, "centred": known["centred"]}
    curve["layers"] = [one | cost for one, cost in zip(curve["layers"], done[-1], strict=True)]
    _show_curve(context, curve)
    return {**known, "hit@5 at full depth": curve["layers"][-1]["hit@5"]}


def _show_curve(context: Context, curve: dict[str, Any]) -> None:
    """Writes the depth curve for programs and for people, and tracks it."""
    from stages.evaluation.depth_view import curve_table, plot_curve, png

    context.output.write_json("depth_curve.json", curve)
    context.output.write_bytes("depth_curve.md", f"{curve_table(curve)}\n".encode())
    figure = plot_curve(curve)
    context.output.write_bytes("depth_curve.png", png(figure))
    context.tracker.figure("depth_curve.png", figure)
    for entry in curve["layers"]:
        measured = {"hit@5": entry["hit@5"], "ms": entry["latency_ms"]["median"], "MiB": entry["memory_mib"]}
        context.tracker.metrics({f"depth {name}": value for name, value in measured.items()}, step=entry["layers"])


def _shape(model: Path) -> tuple[int, int]:
    """(layers of the backbone, the length of a state)."""
    from stages.model.prune import pruned_config

    config = pruned_config(model, None).text_config
    return config.num_hidden_layers, config.hidden_size


def _teaching_layer(chosen: int, depth: int) -> int:
    """The layer that teaches, counted from 1.

    Raises:
        StageError: the backbone has no such layer.
    """
    layer = chosen if chosen > 0 else depth + 1 + chosen
    if not chosen or not 1 <= layer <= depth:
        raise StageError(f"features.layer is {chosen}, but the backbone has layers 1..{depth} (-1 is the last)")
    return layer


# ------------------------------------------------------------------------------------------------ the depth curve


def _sample(context: Context) -> dict[str, "pa.Table"]:
    """The validation sample by side; the two sample sizes bound what comes to the driver of it."""
    from stages.evaluation.depth import validation_sample

    queries = context.params.features.curve_queries
    tables = validation_sample(context.inputs["ingest"], queries, CURVE_CANDIDATES)
    return dict(zip(("query", "candidate"), tables, strict=True))


def _sample_work(context: Context, sample: dict[str, "pa.Table"], depth: int) -> list["Work"]:
    """The work that reads the sample by every layer, some batches at a time."""
    from stages.distributed.actors import Work

    layers, rows = tuple(range(1, depth + 1)), context.cluster.batch_size * WINDOW
    read = partial(_read_sample, layers=layers, source=context.inputs["ingest"])
    return [
        Work(read, {"table": table.slice(start, rows), "side": side})
        for side, table in sample.items()
        for start in range(0, len(table), rows)
    ]


def _read_sample(
    models: "Models", *, table: "pa.Table", side: str, layers: tuple[int, ...], source: "Artifact"
) -> tuple[str, "pa.ChunkedArray"]:
    """The side, and the states of a part of its sample after all layers."""
    from stages.distributed.teacher import read_states

    return side, read_states(models, table, side=side, layers=layers, rows=source)["vector"]


def _curve(sample: dict[str, "pa.Table"], parts: list[tuple[str, "pa.ChunkedArray"]], dim: int) -> dict[str, Any]:
    """hit@5 of every depth on the validation sample; see `stages.evaluation.depth`."""
    import pyarrow as pa

    from stages.evaluation.depth import curve_of

    tables = []
    for side, table in sample.items():
        states = [part.combine_chunks() for of, part in parts if of == side]
        tables.append(table.append_column("vector", pa.chunked_array(states)))
    return curve_of(*tables, dim)


def _timed_rows(sample: dict[str, "pa.Table"], depth: int) -> list[list[dict[str, Any]]]:
    """The stored queries that every depth is timed on, as one list; none where the sample is empty."""
    from stages.evaluation.depth import evenly

    queries = sample["query"]
    return [queries.take(evenly(len(queries), max(4, TIMED_QUERIES // depth))).to_pylist()] if len(queries) else []


def _time_depths(models: "Models", *, rows: list[dict[str, Any]], source: "Artifact") -> list[dict[str, Any]]:
    """The cost of every depth, while nothing else of this run works."""
    from stages.distributed.actors import TEACHER
    from stages.evaluation.cost import measure_depths

    reader = models.reader("query", source)
    return measure_depths(models.encoder(TEACHER), [reader.read(row) for row in rows], models.batch_size)
