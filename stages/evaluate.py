"""evaluate: retrieval quality and cost of the student beside its teacher, and beside the same layers without training.

Inputs: ingest (queries, qrels as positives), backbone (the teacher), features (the layer that taught, the depth
curve), train (the student), index (the candidates' vectors). Steps: choose the queries; one pool of actors embeds them
with the student, reads the teacher over queries and candidates, at its last layer and at the student's depth (which is
what cutting alone gives), and times both models; rank by Ray tasks that each take thousands of queries over the
corpus, on GPUs where the cluster's processes have them; the same for the student's vectors in fewer bytes; write
metrics, TREC runs, tables, plots and `report.html`.

The student's queries are also asked of the teacher's candidates at the layer that taught; a teacher from outside has
none. An index may hold those instead of the student's (`index.candidates=teacher`); its searches are that row then,
`asymmetric`, and for the row `student`, queries and candidates by the student, the candidates are embedded here.

All models meet the same queries, pools and instructions; queries that ingest rejected count as missed. Memory is flat
in the corpus: workers hold a tile of it (on a GPU also its ids), the driver holds sums. All students of one backbone
share its vectors
(`stages.distributed.teacher_pools`); a grid that compares students leaves the teacher out (`evaluate.teacher=false`).
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from stages.contract.context import Artifact, Context
from stages.contract.params import Section
from stages.evaluation import mbeir
from stages.evaluation.mbeir import SCOPES
from stages.search.card import holds_teacher

if TYPE_CHECKING:
    from ray import ObjectRefGenerator

    from stages.distributed.actors import Models, Work
    from stages.distributed.teacher import ReadOut
    from stages.evaluation.rank import Pools, Tally
    from stages.evaluation.sets import EvaluationSet
    from stages.search.exact import ExactIndex
    from stages.search.leading import Leading

VERSION = 1
DEPTH = 50  # ranked candidates kept for each query
TIMED_QUERIES = 50
LARGE = 1_000_000
"""Candidates from which on a pass over them is dear: of a backbone of 7B they are 7 GB, which each task reads."""
CANDIDATES = "candidates/student"
"""Where the student's candidates lie, if the index holds the teacher's."""
STUDENT, TEACHER, CUT, ASYMMETRIC = "student", "teacher", "cut", "asymmetric"
"""What is measured. CUT: the teacher's first layers, as many as the student has, before any training. ASYMMETRIC: the
student's queries on the teacher's candidates (LEAF, 2025, arXiv 2509.12539), which needs a student that is aligned."""


class Params(Section):
    """The section `evaluate`."""

    queries_per_task: int = Field(
        0, ge=0, description="at most this many queries of each task, evenly spaced; 0 is all"
    )
    teacher: bool = Field(True, description="measure the teacher beside the student")


def run(context: Context) -> dict[str, float | dict]:
    """Runs the stage; see the module header."""
    from stages.distributed.actors import say
    from stages.distributed.teacher import taught
    from stages.evaluation.page import write_page
    from stages.evaluation.rank import Pools
    from stages.evaluation.report import write_report
    from stages.evaluation.sets import find_sets, rejected_sets
    from stages.model import checkpoint
    from stages.model.prune import kept_layers

    card = context.inputs["index"].read_json("retriever.json")
    sets = find_sets(context.inputs["ingest"], card["split"], context.params.evaluate.queries_per_task)
    lost = rejected_sets(context.inputs["ingest"], card["split"], sets)
    for name, count in lost.items():
        say(f"evaluate: warning: {name} is not measured, all of its {count:,} queries were rejected")
    models = find_models(context)
    described = {name: checkpoint.settings(artifact) for name, artifact in models.items()}
    indexes, costs = embed(context, card, sets, read_layers(described))
    ranker = Ranker(context, sets, Pools(card["union"], card["pools"], card["rows"]), lost)
    asked = {name: name for name in indexes}
    if ASYMMETRIC in indexes:
        asked[ASYMMETRIC] = asymmetric_queries(context, card)
    tallies = {name: ranker.tallies(name, index, queries=asked[name]) for name, index in indexes.items()}
    metrics = summarise(ranker, tallies, costs, checkpoint.trained(context.inputs["backbone"]))
    metrics[STUDENT] |= ranker.dimensions(described[STUDENT], indexes[STUDENT])
    metrics[STUDENT] |= ranker.smaller(described[STUDENT], indexes[STUDENT])
    if kept := kept_layers(described[STUDENT]):
        metrics[STUDENT]["kept_layers"] = kept
    if ASYMMETRIC in metrics:
        metrics[ASYMMETRIC] |= {"layer": taught(context.inputs["features"]).layer, "searched": holds_teacher(card)}
    if "precision" in card:
        metrics[ASYMMETRIC if holds_teacher(card) else STUDENT]["precision"] = card["precision"]
    context.output.write_json("metrics.json", metrics)
    write_report(context, metrics)
    shown = {name: ASYMMETRIC if name == STUDENT and holds_teacher(card) else name for name in models}
    write_page(context, metrics, find_examples(context, card["split"], sets, shown))
    return metrics


def find_models(context: Context) -> dict[str, Artifact]:
    """The artifacts of the student and, where it is measured, of its teacher."""
    teacher = {TEACHER: context.inputs["backbone"]} if context.params.evaluate.teacher else {}
    return {STUDENT: context.inputs["train"], **teacher}


def read_layers(models: Mapping[str, Path]) -> "dict[str, ReadOut]":
    """The teacher's layers that are read, by what `models` says: its last, and the student's depth where that differs.

    A student of other layers than the first is no state of the teacher: its cut is not measured.
    """
    from stages.distributed.actors import say
    from stages.distributed.teacher import ReadOut
    from stages.model.prune import kept_layers, pruned_config

    if TEACHER not in models:
        return {}
    depth, kept = (pruned_config(models[name], None).text_config.num_hidden_layers for name in (TEACHER, STUDENT))
    if chosen := kept_layers(models[STUDENT]):
        say(
            f"evaluate: layers {', '.join(map(str, chosen))} without training are left out of the tables;"
            " a run with distill.steps=0 train.steps=0 measures them"
        )
        return {TEACHER: ReadOut(depth)}
    return {TEACHER: ReadOut(depth)} | ({CUT: ReadOut(kept)} if kept < depth else {})


def embed(
    context: Context, card: Mapping[str, Any], sets: "Sequence[EvaluationSet]", layers: "Mapping[str, ReadOut]"
) -> "tuple[dict[str, ExactIndex], dict[str, dict[str, Any]]]":
    """All that models do, in one pool: query vectors to this artifact, the teacher's candidates to theirs, costs."""
    from stages.distributed.actors import Work, carry_out
    from stages.distributed.queries import query_work, write_asked
    from stages.distributed.teacher import taught
    from stages.distributed.teacher_pools import PoolVectors
    from stages.model import checkpoint
    from stages.search.exact import ExactIndex

    models = {name: checkpoint.place(artifact) for name, artifact in find_models(context).items()}
    pools = dict(layers)
    if layers and not holds_teacher(card) and (read := taught(context.inputs["features"])):
        pools[ASYMMETRIC] = read
    asked = write_asked(context, card["split"], sets)
    with ExitStack() as stack:
        teacher = PoolVectors.open(context, stack, card, dict.fromkeys(pools.values()))
        work = [*teacher.work, *student_candidates(context, card), *query_work(context, asked, layers)]
        timed = {"asked": asked, "filesystem": context.output.filesystem, "names": list(models)}
        *_, costs = carry_out(context, models, work, alone=[Work(time_models, timed)], label="evaluate")
        vectors = teacher.artifacts(card["rows"])
    context.output.write_json("teacher.json", {name: vectors[layer].key for name, layer in layers.items()})
    indexes = student_indexes(context, card)
    return indexes | {name: ExactIndex.open(vectors[layer]) for name, layer in pools.items()}, costs


def asymmetric_queries(context: Context, card: Mapping[str, Any]) -> str:
    """The name of the student's queries as the teacher's candidates are to be asked.

    They are the student's, but for a teacher that was turned and whose candidates lie here as it gave them: then the
    queries are turned back, which makes the same cosines.
    """
    from stages.distributed.queries import prefix_of, vector_files
    from stages.distributed.rotation import read_rotation
    from stages.distributed.teacher_pools import turn_files

    rotation = None if holds_teacher(card) else read_rotation(context.inputs["train"])
    if rotation is None:
        return STUDENT
    files = vector_files(context.output, STUDENT)
    turn_files(files, context.output.filesystem, context.output, prefix_of(ASYMMETRIC), rotation.T)
    return ASYMMETRIC


def student_candidates(context: Context, card: Mapping[str, Any]) -> "list[Work]":
    """The work that embeds the candidates with the student, where the index does not hold them so."""
    from stages.distributed.pools import student_work

    return student_work(context, CANDIDATES, card["pools"]) if holds_teacher(card) else []


def student_indexes(context: Context, card: Mapping[str, Any]) -> "dict[str, ExactIndex]":
    """What the student's queries are asked of: its own candidates, and the index where that holds the teacher's.

    Raises:
        StageError: not all of its own candidates are there.
    """
    from stages.distributed.pools import written
    from stages.search.exact import ExactIndex
    from stages.search.precision import Precision

    index = ExactIndex.open(context.inputs["index"], Precision.of(card))
    if not holds_teacher(card):
        return {STUDENT: index}
    own = written(context.output, CANDIDATES, card["rows"])["files"]
    return {STUDENT: ExactIndex(tuple(own), context.output.filesystem), ASYMMETRIC: index}


def time_models(
    models: "Models", *, asked: Sequence[str], filesystem: Any, names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Size, latency and throughput of each model, in one process while nothing else of this run works."""
    import pyarrow.parquet as pq

    from stages.evaluation.cost import measure_cost
    from stages.evaluation.sets import spaced_rows

    stored = [pq.read_table(path, filesystem=filesystem).drop_columns(["positives"]) for path in asked]
    rows = [models.reader("query").read(row) for row in spaced_rows(stored, TIMED_QUERIES)]
    return measure_cost({name: models.encoder(name) for name in names}, rows, models.batch_size)


@dataclass(frozen=True)
class Ranker:
    """The asked sets and their pools, ranked by any model's vectors; `lost` sets have no query left, of so many."""

    context: Context
    sets: "Sequence[EvaluationSet]"
    pools: "Pools"
    lost: Mapping[str, int] = field(default_factory=dict)

    def tallies(
        self, model: str, index: "ExactIndex | Leading", queries: str, dim: int | None = None
    ) -> "dict[tuple[str, str], Tally]":
        """Ranks all blocks as Ray tasks: a tally for each (set, scope), and the run files, named after `model`.

        Args:
            model: what the run is called.
            index: the candidates' vectors.
            queries: whose query vectors are asked.
            dim: leading values of the query vectors that are read; None is all.
        """
        import ray

        from stages.distributed.queries import vector_files
        from stages.evaluation.rank import rank_files
        from stages.evaluation.sets import run_file

        context = self.context
        resources, device, slots = self.workers()
        rank = ray.remote(**resources)(rank_files).options(num_returns="streaming")
        runs = context.output.work / "runs"
        runs.mkdir(parents=True, exist_ok=True)
        total = self.blank()
        files = {(name, scope): runs / run_file(f"{model}.{scope}", name) for name, scope in total}
        for path in files.values():
            path.write_text("")  # a killed attempt may have left half a run here
        common = (context.output.filesystem, dim, self.sets, self.pools, index, DEPTH, f"puma-{model}", device)
        groups = grouped(vector_files(context.output, queries), device, slots, self.pools.total)
        for tallies in in_order((rank.remote(group, *common) for group in groups), 2 * slots):
            for key, tally in tallies.items():
                total[key].add(tally)
                with files[key].open("a", encoding="utf-8") as opened:
                    opened.writelines(tally.trec)
        for path in files.values():
            context.output.upload(path, f"runs/{path.name}")
        return total

    def workers(self) -> tuple[dict[str, float], str, int]:
        """What a task asks of the cluster, the device that it computes on, and how many run at once."""
        gpus = self.context.cluster.gpus_per_worker
        if gpus:
            return {"num_gpus": gpus}, "cuda", ray_slots("GPU", gpus)
        return {"num_cpus": 1}, "cpu", ray_slots("CPU", 1)

    def blank(self) -> "dict[tuple[str, str], Tally]":
        """A tally for each (set, scope) before any query is asked: those that were rejected are missed already."""
        from stages.evaluation.rank import Tally

        return {(one.name, scope): Tally(queries=one.missed) for one in self.sets for scope in SCOPES}

    def dimensions(self, student: Path, index: "ExactIndex") -> dict[str, list[dict[str, Any]]]:
        """What the student finds by the leading dimensions that it was trained for: means over sets, by dimension."""
        from stages.evaluation.smaller import means
        from stages.search.leading import Leading, trained_dimensions

        rows = []
        for dim in trained_dimensions(student):
            found = self.tallies(f"student-{dim}d", Leading(index, dim), queries=STUDENT, dim=dim)
            rows.append({"dim": dim, **means(self.sets, found, self.lost)})
        return {"dimensions": rows} if rows else {}

    def smaller(self, student: Path, index: "ExactIndex") -> dict[str, dict[str, Any]]:
        """What the student finds by its trained dimensions in each precision, of at most so many queries.

        Nothing where the index holds no float16: what that would find is not known.
        """
        import ray

        from stages.distributed.queries import vector_files
        from stages.evaluation import smaller
        from stages.search.leading import trained_dimensions
        from stages.search.precision import FLOAT16

        if index.precision.name != FLOAT16:
            return {}
        resources, device, slots = self.workers()
        files, filesystem = vector_files(self.context.output, STUDENT), self.context.output.filesystem
        sets, queries = smaller.choose(files, filesystem, self.sets)
        find, rank = (ray.remote(**resources)(work) for work in (smaller.find_precisions, smaller.rank))
        precisions = ray.get(find.remote(index, sorted({*trained_dimensions(student), index.dim})))
        common = (sets, self.pools, index, precisions, device)
        parts = ray.get([rank.remote(part, *common) for part in smaller.shares(queries, slots)])
        rows = smaller.tabulate(sets, precisions, parts, self.lost)
        return {"smaller": {"queries": queries.num_rows, "of": sum(one.asked for one in self.sets), "rows": rows}}


def ray_slots(resource: str, each: float) -> int:
    """Tasks that run at once where each takes so much of a resource of the cluster."""
    import ray

    return max(1, int(ray.cluster_resources().get(resource, each) / each))


def grouped(files: Sequence[str], device: str, slots: int, candidates: int) -> list[list[str]]:
    """The files of blocks that go over the corpus together: all that a task may hold, but every slot has some.

    CPUs by the hundred would each read the whole of a large corpus for a block or two: of that all tasks are full, and
    passes few, however many slots there are. GPUs are few, and read for as long as they compute.
    """
    from stages.evaluation.rank import QUERIES
    from stages.evaluation.sets import BLOCK

    most = QUERIES[device] // BLOCK
    if device != "cpu" or candidates < LARGE:
        most = min(most, -(-len(files) // slots))
    return [list(files[start : start + most]) for start in range(0, len(files), max(1, most))]


def in_order(tasks: Iterable["ObjectRefGenerator"], in_flight: int) -> Iterator[Any]:
    """What lazily submitted Ray tasks yield, in order; no more than `in_flight` of them are under way."""
    import ray

    pending: deque = deque()
    for task in tasks:
        pending.append(task)
        if len(pending) >= in_flight:
            yield from map(ray.get, pending.popleft())
    while pending:
        yield from map(ray.get, pending.popleft())


def find_examples(
    context: Context, split: str, sets: "Sequence[EvaluationSet]", shown: Mapping[str, str]
) -> dict[str, list[dict[str, Any]]]:
    """Good and bad retrievals to look at, from the run files of this attempt: `shown` is {model: its run's name}."""
    from stages.evaluation.examples import collect

    runs = {name: context.output.work / "runs" / f"{run}.local" for name, run in shown.items()}
    return collect(context.inputs["ingest"], split, sets, runs)


def summarise(
    ranker: Ranker, tallies: "Mapping[str, Mapping[tuple[str, str], Tally]]", costs: Mapping[str, dict], trained: bool
) -> dict[str, Any]:
    """The content of metrics.json. The mean over sets weighs each set the same, as M-BEIR's own score does.

    What a student keeps of its teacher is told of a teacher that was `trained` on the data: one from outside finds so
    little there as it came that the share would say nothing.
    """
    from stages.evaluation.measures import mean

    sets, pools = ranker.sets, ranker.pools
    metrics: dict[str, Any] = {}
    for name in tallies:
        metrics[name] = dict(costs.get(name, {}))
        for scope in SCOPES:
            tasks = {one.name: _task(one, pools, scope, tallies[name][one.name, scope]) for one in sets}
            means = mean(tallies[name][one.name, scope].means() for one in sets)
            metrics[name][scope] = {**means, "tasks": tasks}
        metrics[name] |= mbeir.score(metrics[name], ranker.lost)
    chance: dict[str, Any] = {}
    for scope in SCOPES:
        tasks = {one.name: tallies[STUDENT][one.name, scope].chances() for one in sets}
        chance[scope] = {**mean(tasks.values()), "tasks": tasks}
    metrics["chance"] = chance | mbeir.score(chance, ranker.lost)
    if ranker.lost:
        metrics["rejected_sets"] = dict(ranker.lost)
    if TEACHER in metrics and trained:
        metrics["kept"] = {f"{scope} hit@5": _kept(metrics, scope) for scope in SCOPES}
    return metrics


def _task(one: "EvaluationSet", pools: "Pools", scope: str, tally: "Tally") -> dict[str, Any]:
    chances = {f"chance {name}": value for name, value in tally.chances().items()}
    size = pools.size(pools.filters(one)[scope])
    sizes = {"queries": tally.queries, "missed": one.missed, "pool_size": size}
    return {**tally.means(), "label": one.label, **sizes, **chances}


def _kept(metrics: Mapping[str, Any], scope: str) -> float:
    teacher = metrics["teacher"][scope]["hit@5"]
    return metrics["student"][scope]["hit@5"] / teacher if teacher else 0.0
