"""evaluate: retrieval quality and cost of the student beside its teacher.

Inputs: ingest (queries, qrels as positives), backbone (the teacher), features (the depth curve, for the page), train
(the student), index (the student's candidate vectors). Steps: choose the queries; embed the candidates with the
teacher, which also stays in the artifact because it is the dearest part; embed the queries with both; rank block by
block as Ray tasks that stream the corpus; time both models in one process; write metrics, TREC runs,
tables, plots and `report.html`.

Teacher and student meet the same queries, pools and instructions. Memory is flat in the corpus: workers hold a tile of
it, the driver holds sums. A grid of many students of one teacher leaves the teacher out, whose numbers would be the
same in every cell (`evaluate.teacher=false`).
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from stages.contract.context import Artifact, Context
from stages.contract.params import Cluster, Section, knob
from stages.distributed.shards import ROWS, ROWS_TOLD

if TYPE_CHECKING:
    from ray import ObjectRef

    from stages.evaluation.rank import Pools, Tally
    from stages.evaluation.sets import EvaluationSet
    from stages.search.exact import ExactIndex

VERSION = 1
SCOPES = ("local", "union")


class Params(Section):
    """The section `evaluate`."""

    queries_per_task: int = Field(
        0, ge=0, description="at most this many queries of each task, evenly spaced; 0 is all"
    )
    depth: int = Field(50, ge=10, description="ranked candidates kept for each query")
    latency_queries: int = Field(50, ge=5, description="queries that the cost is measured on")
    teacher: bool = Field(True, description="measure the teacher beside the student")
    rows_per_shard: int = Field(ROWS, ge=1, description=ROWS_TOLD)
    batch_size: int = knob(64, ge=1)


def run(context: Context) -> dict[str, float | dict]:
    """Runs the stage; see the module header."""
    from stages.evaluation.page import write_page
    from stages.evaluation.rank import Pools
    from stages.evaluation.report import write_report
    from stages.evaluation.sets import find_sets
    from stages.model import checkpoint
    from stages.search.exact import ExactIndex

    params, index = context.params.evaluate, context.inputs["index"]
    card = index.read_json("retriever.json")
    sets = find_sets(context.inputs["ingest"], card["split"], params.queries_per_task)
    pools = Pools(card["union"], card["pools"], card["rows"])
    models, corpora = {"student": context.inputs["train"].local("model")}, {"student": ExactIndex.open(index)}
    if params.teacher:
        models["teacher"] = checkpoint.directory(context.inputs["backbone"])
        corpora["teacher"] = embed_teacher(context, card, models["teacher"])
    queries = put_queries(context, card["split"], sets)
    asked = {name: embed_queries(context, queries, model) for name, model in models.items()}
    tallies = {name: rank_queries(context, name, asked[name], sets, pools, corpora[name]) for name in models}
    costs = time_models(context, queries, models)
    metrics = summarise(sets, pools, tallies, costs)
    student = (models["student"], asked["student"], sets, pools, corpora["student"])
    metrics["student"] |= rank_dimensions(context, *student)
    context.output.write_json("metrics.json", metrics)
    write_report(context, metrics)
    write_page(context, metrics, find_examples(context, card["split"], sets, models))
    return metrics


def embed_teacher(context: Context, card: Mapping[str, Any], model: Path) -> "ExactIndex":
    """The index's candidates embedded by the teacher, as an index over `teacher/` of this artifact."""
    from stages.distributed.pools import embed_pools
    from stages.search.exact import ExactIndex

    written = embed_pools(context, "teacher", card, model, context.params.evaluate)
    return ExactIndex(tuple(written["files"]), context.output.filesystem)


def put_queries(context: Context, split: str, sets: "list[EvaluationSet]") -> list["ObjectRef"]:
    """The asked queries in the object store, block by block, so that the driver holds one block at a time."""
    import ray

    from stages.evaluation.sets import query_blocks

    return [ray.put(block) for block in query_blocks(context.inputs["ingest"], split, sets)]


def embed_queries(context: Context, queries: list["ObjectRef"], model: Path) -> list["ObjectRef"]:
    """The same blocks with vectors. All are done before ranking starts, which would compete for the same cores."""
    import ray.data

    from stages.distributed.embedding import embed_rows

    batch_size = context.params.evaluate.batch_size
    stored = ray.data.from_arrow_refs(queries)
    stored.context.execution_options.preserve_order = True  # else run files depend on which actor is faster
    embedded = embed_rows(context, stored, model=model, side="query", batch_size=batch_size)
    return embedded.materialize().to_arrow_refs()


def rank_queries(
    context: Context,
    model: str,
    blocks: list["ObjectRef"],
    sets: "list[EvaluationSet]",
    pools: "Pools",
    index: "ExactIndex",
) -> "dict[tuple[str, str], Tally]":
    """Ranks all blocks as Ray tasks: a tally for each (set, scope), and the run files."""
    import ray

    from stages.evaluation.rank import Tally, rank_block

    rank = ray.remote(num_cpus=1)(rank_block)
    depth, runs = context.params.evaluate.depth, context.output.work / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    total = {(one.name, scope): Tally() for one in sets for scope in SCOPES}
    files = {(name, scope): runs / f"{model}.{scope}.{name}.trec" for name, scope in total}
    for path in files.values():
        path.write_text("")  # a killed attempt may have left half a run here
    for tallies in in_order(rank.remote(block, sets, pools, index, depth, f"puma-{model}") for block in blocks):
        for key, tally in tallies.items():
            total[key].add(tally)
            with files[key].open("a", encoding="utf-8") as run_file:
                run_file.writelines(tally.trec)
    for path in files.values():
        context.output.upload(path, f"runs/{path.name}")
    return total


def rank_dimensions(
    context: Context,
    model: Path,
    blocks: list["ObjectRef"],
    sets: "list[EvaluationSet]",
    pools: "Pools",
    index: "ExactIndex",
) -> dict[str, list[dict[str, Any]]]:
    """What the student finds by the leading dimensions that it was trained for: means over sets, by dimension."""
    import ray

    from stages.evaluation.measures import mean
    from stages.search.leading import Leading, cut, trained_dimensions

    shorten, rows = ray.remote(num_cpus=1)(cut), []
    for dim in trained_dimensions(model):
        asked = [shorten.remote(block, dim) for block in blocks]
        tallies = rank_queries(context, f"student-{dim}d", asked, sets, pools, Leading(index, dim))
        means = {scope: mean(tallies[one.name, scope].means() for one in sets) for scope in SCOPES}
        rows.append({"dim": dim, **means})
    return {"dimensions": rows} if rows else {}


def in_order(tasks: Iterable["ObjectRef"]) -> Iterator[Any]:
    """The results of lazily submitted Ray tasks in order; no more are under way than keep all cores busy."""
    import ray

    in_flight = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    pending: deque = deque()
    for task in tasks:
        pending.append(task)
        if len(pending) >= in_flight:
            yield ray.get(pending.popleft())
    while pending:
        yield ray.get(pending.popleft())


def time_models(context: Context, queries: list["ObjectRef"], models: Mapping[str, Path]) -> dict[str, dict]:
    """Size, latency and throughput of each model, in a process of its own while nothing else of this run works."""
    import ray

    from stages.distributed.embedding import pool_size

    _, resources = pool_size(context.cluster)
    params, ingest = context.params.evaluate, context.inputs["ingest"]
    sizes = (params.latency_queries, params.batch_size)
    return ray.get(ray.remote(**resources)(_time_models).remote(queries, ingest, context.cluster, models, *sizes))


def _time_models(
    queries: list["ObjectRef"],
    ingest: Artifact,
    cluster: Cluster,
    models: Mapping[str, Path],
    count: int,
    batch_size: int,
) -> dict[str, dict]:
    import ray

    from stages.distributed.embedding import RowReader, load_encoder
    from stages.evaluation.cost import measure_cost
    from stages.evaluation.sets import spaced_rows

    reader = RowReader(ingest, "query")
    stored = [ray.get(block).drop_columns(["positives"]) for block in queries]
    rows = [reader.read(row) for row in spaced_rows(stored, count)]
    return measure_cost({name: load_encoder(path, cluster) for name, path in models.items()}, rows, batch_size)


def find_examples(
    context: Context, split: str, sets: "list[EvaluationSet]", models: Iterable[str]
) -> dict[str, list[dict[str, Any]]]:
    """Good and bad retrievals to look at, from the run files of this attempt."""
    from stages.evaluation.examples import collect

    runs = {name: context.output.work / "runs" / f"{name}.local" for name in models}
    return collect(context.inputs["ingest"], split, sets, runs)


def summarise(
    sets: "list[EvaluationSet]",
    pools: "Pools",
    tallies: "Mapping[str, Mapping[tuple[str, str], Tally]]",
    costs: Mapping[str, dict],
) -> dict[str, Any]:
    """The content of metrics.json. The mean over sets weighs each set the same, as M-BEIR's headline does."""
    from stages.evaluation.measures import mean

    metrics: dict[str, Any] = {}
    for name in tallies:
        metrics[name] = dict(costs[name])
        for scope in SCOPES:
            tasks = {one.name: _task(one, pools, scope, tallies[name][one.name, scope]) for one in sets}
            means = mean(tallies[name][one.name, scope].means() for one in sets)
            metrics[name][scope] = {**means, "tasks": tasks}
    chance = {}
    for scope in SCOPES:
        tasks = {one.name: tallies["student"][one.name, scope].chances() for one in sets}
        chance[scope] = {**mean(tasks.values()), "tasks": tasks}
    metrics["chance"] = chance
    if "teacher" in metrics:
        metrics["kept"] = {f"{scope} hit@5": _kept(metrics, scope) for scope in SCOPES}
    return metrics


def _task(one: "EvaluationSet", pools: "Pools", scope: str, tally: "Tally") -> dict[str, Any]:
    chances = {f"chance {name}": value for name, value in tally.chances().items()}
    size = pools.size(pools.filters(one)[scope])
    return {**tally.means(), "label": one.label, "queries": tally.queries, "pool_size": size, **chances}


def _kept(metrics: Mapping[str, Any], scope: str) -> float:
    teacher = metrics["teacher"][scope]["hit@5"]
    return metrics["student"][scope]["hit@5"] / teacher if teacher else 0.0
