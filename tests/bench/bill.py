"""What a run on the whole of M-BEIR would take: `python -m tests.bench bill [--output FILE]`. Arithmetic only.

Work is counted from M-BEIR's published sizes, the recipes and the shapes of Qwen2-VL; its pace is what a GPU was
measured to do with a model of that shape, carried over to other GPUs by their published peaks. Nothing of it has been
run. Each line says how it was got: published, counted, measured, or assumed.

Not counted: starts of processes, loading of weights, what a top k costs beside its matrix product, and waiting for the
slowest of several machines.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

from pipeline.ablation.document import check_output, write_section
from pipeline.config.load import read_config
from pipeline.config.sections import Config
from pipeline.wording import size_in_words
from stages.evaluate import grouped
from stages.evaluation.markdown_table import markdown_table
from stages.evaluation.sets import BLOCK
from tests.bench.published import (
    CANDIDATES,
    PICTURE_BYTES,
    SETS,
    TRAIN_QUERIES,
    UNION_BYTES,
    PublishedSet,
)

RECIPES = {"2B": "puma_qwen2vl_2b", "7B": "puma_qwen2vl_7b"}
GPUS = {"H100": 989e12, "A100": 312e12}
"""Published peaks in bf16, dense, of the SXM cards."""
COUNTS = (4, 32)
MEASURED_PEAK = 989e12
"""Of the H200 that docs/performance.md measured; published."""
EMBEDDED, TRAINED = 231.0, 57.0
"""Rows a second of 28 layers of 2B's shape, and pairs a second of its training step, there."""
TF32 = 0.5
"""Peak of the matrix products that rank, by that of bf16; published for both cards."""
DECODE_SECONDS = 8.5e-3
"""CPU time to decode and resize a picture of M-BEIR's size; measured on one core of an EPYC."""
DECODERS, CPUS = 8, 12
"""Threads that read pictures for a GPU, and CPUs of a machine of cluster/ray-cluster.yaml, which has one GPU."""
NETWORK = 1.25e9
"""Bytes a second of a machine, to the bucket and to the others: 10 Gbit/s, assumed."""
ROW_SECONDS = 70e-6
"""CPU time of ingest for a row besides its picture; assumed."""
LANCE_SECONDS, LANCE_ROWS, LANCE_WIDTH, HEAD_CPUS = 14.4, 200_000, 512, 4
"""CPU time of building a lance index of that size (docs/performance.md), and the CPUs that build it."""
JSON_BYTES, CHARACTERS = 140, 4
"""A line of a pool without its text, and characters of a token; assumed."""
PROMPT_TOKENS, QUERY_TOKENS = 20, 50
"""What the prompt adds, and an instruction with a query's text; assumed."""
PATCHES, MERGED = 432, 4
"""Of a picture whose short side is 256, as M-BEIR's are: 256 × 336; and how many become one token."""


@dataclass(frozen=True)
class Shape:
    """A Qwen2-VL: widths and depths from its published configuration."""

    hidden: int
    key_width: int
    inner: int
    layers: int = 28
    vision_width: int = 1280
    vision_layers: int = 32
    weights: float = 0.0
    """Bytes of the published checkpoint."""

    @property
    def layer(self) -> int:
        """Parameters of a decoder layer's matrices."""
        return 2 * self.hidden * (self.hidden + self.key_width) + 3 * self.hidden * self.inner

    @property
    def vision(self) -> int:
        """Parameters of the vision tower's matrices, for one patch."""
        return self.vision_layers * 12 * self.vision_width**2

    def adapters(self, rank: int) -> int:
        """Parameters of LoRA in one layer, on all its matrices."""
        pairs = 2 * (2 * self.hidden + self.hidden + self.key_width) + 3 * (self.hidden + self.inner)
        return rank * pairs

    def decode(self, tokens: float, layers: int) -> float:
        """FLOP of a row through decoder layers, forward; attention is causal."""
        return layers * tokens * (2 * self.layer + 2 * tokens * self.hidden)

    def see(self, pictures: float, patches: int = PATCHES) -> float:
        """FLOP of pictures through the vision tower and its merger, forward."""
        merger = 2 * (MERGED * self.vision_width) * (MERGED * self.vision_width + self.hidden) / MERGED
        attention = 4 * patches * self.vision_width * self.vision_layers
        return pictures * patches * (2 * self.vision + merger + attention)


SHAPES = {
    "2B": Shape(hidden=1536, key_width=256, inner=8960, weights=4.4e9),
    "7B": Shape(hidden=3584, key_width=512, inner=18944, weights=16.6e9),
}


@dataclass(frozen=True)
class Rows:
    """Rows of one kind, or a mean one: tokens and pictures of each."""

    tokens: float
    pictures: float


def once(machines: int) -> int:
    """However many they are."""
    return 1


@dataclass(frozen=True)
class Line:
    """One line of the bill.

    Attributes:
        flop: on GPUs, at the measured share of their peak, which differs where it `trains`.
        pictures: decoded for the GPUs, while they compute.
        cpu: seconds of machines' CPUs, besides.
        head_cpu: seconds of the head's CPUs, while all else waits.
        moved: bytes between machines and bucket, besides.
        each: bytes that each machine moves for itself, whatever their number,
        times: how often, by their number.
    """

    stage: str
    work: str
    how: str
    flop: float = 0.0
    pictures: float = 0.0
    cpu: float = 0.0
    head_cpu: float = 0.0
    moved: float = 0.0
    each: float = 0.0
    times: Callable[[int], int] = once
    trains: bool = False

    def seconds(self, gpus: int, peak: float) -> float:
        """On so many machines of one GPU of that peak each."""
        share = training_share() if self.trains else embedding_share()
        computing = self.flop / (gpus * peak * share)
        reading = self.pictures * DECODE_SECONDS / (gpus * DECODERS)
        rest = self.cpu / (gpus * CPUS) + self.head_cpu / HEAD_CPUS
        return max(computing, reading) + rest + (self.moved / gpus + self.each * self.times(gpus)) / NETWORK


def embedding_share() -> float:
    """The share of a GPU's peak that the model reached: the rows of `python -m tests.bench gpu`, a quarter each."""
    shape, pictures = SHAPES["2B"], 4 * 256
    mix = ((8, 0), (180, 0), (256, 1), (265, 1))  # tokens besides the prompt, pictures of 1,024 patches
    each = [shape.decode(PROMPT_TOKENS + tokens, shape.layers) + shape.see(seen, pictures) for tokens, seen in mix]
    return EMBEDDED * sum(each) / len(each) / MEASURED_PEAK


def training_share() -> float:
    """The same in a training step, whose decoder goes forward once and backward, and whose tower stands still."""
    shape, patches = SHAPES["2B"], 4 * 256
    texts = sum(shape.decode(PROMPT_TOKENS + tokens, shape.layers) for tokens in (8, 180)) / 2
    pair = 3 * (texts + shape.decode(PROMPT_TOKENS + 256, shape.layers)) + shape.see(1, patches)
    return TRAINED * pair / MEASURED_PEAK


def candidate(one: PublishedSet) -> Rows:
    """A candidate of a set; its text is as long as the published file of all of them says on the mean."""
    return row(one.target, text_tokens())


def query(one: PublishedSet) -> Rows:
    """A query of a set, with its instruction."""
    return row(one.query, QUERY_TOKENS) if "text" in one.query else row("image,text", QUERY_TOKENS / 2)


def row(modality: str, text: float) -> Rows:
    """A row of a modality."""
    pictures = float("image" in modality)
    return Rows(PROMPT_TOKENS + text * ("text" in modality) + pictures * PATCHES / MERGED, pictures)


def text_tokens() -> float:
    """Of a candidate's text."""
    with_text = sum(one.pool for one in SETS if "text" in one.target)
    return (UNION_BYTES - CANDIDATES * JSON_BYTES) / with_text / CHARACTERS


def mean(of: Callable[[PublishedSet], Rows], weight: Callable[[PublishedSet], int]) -> Rows:
    """The mean row over the sets."""
    total = sum(map(weight, SETS))
    parts = [(of(one), weight(one) / total) for one in SETS]
    return Rows(*(sum(getattr(one, name) * share for one, share in parts) for name in ("tokens", "pictures")))


def bill(size: str) -> list[Line]:
    """All stages of the recipe of a size."""
    config = read_config(RECIPES[size], ["data.path=M-BEIR", "backbone.revision=x"])[0]
    shape = SHAPES[size]
    whole = [ingest(), Line("backbone", size_in_words(shape.weights), "published size", each=2 * shape.weights)]
    trained = [training(config, shape, name) for name in ("distill", "train")]
    return [*whole, features(config, shape), *trained, index(config, shape), *evaluate(config, shape)]


def ingest() -> Line:
    """Every picture is read, decoded and written once; rows are light."""
    queries = TRAIN_QUERIES + sum(one.val + one.test for one in SETS)
    seen = sum(one.pool for one in SETS if "image" in one.target)
    seen += sum(one.train + one.val + one.test for one in SETS if "image" in one.query)
    rows = 2 * CANDIDATES + TRAIN_QUERIES + queries  # local pools and unions; train's candidates are as its queries
    cpu = rows * ROW_SECONDS + seen * DECODE_SECONDS
    work = f"{rows / 1e6:.1f} M rows, at most {seen / 1e6:.1f} M pictures, {size_in_words(PICTURE_BYTES)} twice"
    return Line("ingest", work, "published sizes; pictures measured, rows assumed", cpu=cpu, moved=2 * PICTURE_BYTES)


def features(config: Config, shape: Shape) -> Line:
    """The whole teacher over the queries that distillation draws, and their positives.

    It is the first to ask for pictures: each machine copies all of them for itself, and later stages find them there.
    """
    drawn = min(config.distill.steps * config.distill.batch_size, TRAIN_QUERIES)
    asked, found = mean(query, lambda one: one.train), mean(candidate, lambda one: one.train)
    flop = sum(shape.decode(one.tokens, shape.layers) + shape.see(one.pictures) for one in (asked, found))
    work = (
        f"{2 * drawn / 1e6:.2f} M rows through {shape.layers} layers; {size_in_words(PICTURE_BYTES)} to each machine"
    )
    pictures, states = drawn * (asked.pictures + found.pictures), 2 * drawn * shape.hidden * 2
    how = "counted FLOP; all pictures are copied to every machine once, while its GPU waits"
    return Line("features", work, how, drawn * flop, pictures, moved=states, each=PICTURE_BYTES)


def training(config: Config, shape: Shape, stage: str) -> Line:
    """GradCache goes forward twice and backward; LoRA needs no gradient of the matrices that it stands beside."""
    asked = getattr(config, stage)
    pairs, layers = asked.steps * asked.batch_size, config.student.layers
    added = shape.adapters(asked.lora.rank) / shape.layer
    passes = 2 * (1 + added) + (1 + 2 * added)
    sides = mean(query, lambda one: one.train), mean(candidate, lambda one: one.train)
    flop = sum(passes * shape.decode(one.tokens, layers) + shape.see(one.pictures) for one in sides)
    sent = 2 * layers * shape.adapters(asked.lora.rank)
    steps = f"{asked.steps:,} steps of {asked.batch_size} pairs, {layers} layers"
    how = "counted FLOP; gradients twice through the network, as a ring sends them"
    pictures = pairs * sum(one.pictures for one in sides)
    work = f"{steps}; {size_in_words(sent)} of gradients a step"
    return Line(stage, work, how, pairs * flop, pictures, each=2 * sent * asked.steps, trains=True)


def index(config: Config, shape: Shape) -> Line:
    """The student over every candidate, then one index by the head."""
    mean_row, layers = mean(candidate, lambda one: one.pool), config.student.layers
    flop = CANDIDATES * (shape.decode(mean_row.tokens, layers) + shape.see(mean_row.pictures))
    built = LANCE_SECONDS * CANDIDATES * shape.hidden / (LANCE_ROWS * LANCE_WIDTH)
    vectors = CANDIDATES * shape.hidden * 2
    work = f"{CANDIDATES / 1e6:.2f} M rows through {layers} layers, {size_in_words(vectors)} of vectors; lance"
    how = "counted FLOP; lance measured at 200,000 × 512 and carried over by rows and width"
    pictures = CANDIDATES * mean_row.pictures
    return Line("index", work, how, flop, pictures, head_cpu=built, moved=vectors, each=2 * vectors)


def passes_each(machines: int) -> int:
    """How often a machine of one GPU reads all vectors to rank the test queries: once for each task that it takes."""
    blocks = [str(number) for number in range(-(-sum(one.test for one in SETS) // BLOCK))]
    return -(-len(grouped(blocks, "cuda", machines, CANDIDATES)) // machines)


def evaluate(config: Config, shape: Shape) -> list[Line]:
    """Test queries by the student, exact ranking in both pools; the teacher over everything, if it is asked for."""
    queries = sum(one.test for one in SETS)
    mean_query, found = mean(query, lambda one: one.test), mean(candidate, lambda one: one.pool)

    def read(rows: Rows, layers: int) -> float:
        return shape.decode(rows.tokens, layers) + shape.see(rows.pictures)

    ranked = 2 * shape.hidden * (queries * CANDIDATES + sum(one.test * one.pool for one in SETS))
    vectors, layers = CANDIDATES * shape.hidden * 2, config.student.layers
    lines = [
        Line(
            "evaluate: queries",
            f"{queries / 1e3:,.0f} k rows through {layers} layers",
            "counted FLOP",
            queries * read(mean_query, layers),
            queries * mean_query.pictures,
        ),
        Line(
            "evaluate: ranking",
            f"{queries / 1e3:,.0f} k × {CANDIDATES / 1e6:.2f} M × {shape.hidden}",
            "counted FLOP in TF32, at the share of the embedding; each task reads all vectors",
            ranked / TF32,
            each=vectors,
            times=passes_each,
        ),
    ]
    if not config.evaluate.teacher:
        return lines
    flop = queries * read(mean_query, shape.layers) + CANDIDATES * read(found, shape.layers) + ranked / TF32
    pictures = queries * mean_query.pictures + CANDIDATES * found.pictures
    work = f"{(queries + CANDIDATES) / 1e6:.2f} M rows through {shape.layers} layers, and ranking"
    how = "counted FLOP; evaluate.teacher=false leaves it out"
    name = "evaluate: the raw teacher"
    return [*lines, Line(name, work, how, flop, pictures, moved=vectors, each=vectors, times=passes_each)]


def section() -> str:
    """The bills of both sizes, and what they rest on."""
    shares = f"{embedding_share():.2f} in embedding and {training_share():.2f} in training"
    asked, found = mean(query, lambda one: one.train), mean(candidate, lambda one: one.pool)
    basis = (
        "`python -m tests.bench bill`. A GPU does the share of its published peak in bf16 ("
        + ", ".join(f"{name} {peak / 1e12:,.0f}" for name, peak in GPUS.items())
        + f" TFLOP/s) that an H200 did with 2B's shape: {shares} ([performance](performance.md)). A machine has one"
        f" GPU, {CPUS} CPUs and {NETWORK * 8 / 1e9:.0f} Gbit/s (assumed); {DECODERS} threads decode for a GPU, at"
        f" {DECODE_SECONDS * 1e3:g} ms a picture (measured), and where they take longer than the GPU their time"
        f" stands. A picture is {PATCHES} patches, {PATCHES // MERGED} tokens; a candidate's text {text_tokens():.0f}"
        f" tokens (the published file of all of them, less {JSON_BYTES} bytes a line, at {CHARACTERS} characters a"
        f" token). A train query has {asked.tokens:.0f} tokens on the mean, a candidate {found.tokens:.0f}, prompt"
        f" included."
    )
    return "\n\n".join(
        [fill(basis, 119, break_long_words=False), *(f"{table_title(size)}\n\n{table(size)}" for size in RECIPES)]
    )


def table_title(size: str) -> str:
    """Which recipe, and what else it says."""
    shape = SHAPES[size]
    parameters = f"{shape.layers * shape.layer / 1e9:.2f} billion parameters in {shape.layers} decoder layers"
    return f"### Qwen2-VL-{size}, recipe `{RECIPES[size]}`\n\n{parameters}."


def table(size: str) -> str:
    """One line for each stage, and the sum."""
    columns = [(count, name, peak) for name, peak in GPUS.items() for count in COUNTS]
    lines = bill(size)
    rows = [["stage", "work", *(f"{count} × {name}" for count, name, _ in columns), "how it was got"]]
    for line in lines:
        rows.append([line.stage, line.work, *(span(line.seconds(n, peak)) for n, _, peak in columns), line.how])
    totals = [sum(line.seconds(count, peak) for line in lines) for count, _, peak in columns]
    rows.append(["**all**", "", *(f"**{span(total)}**" for total in totals), "sum"])
    spent = [f"{count * total / 3600:,.0f} h" for (count, *_), total in zip(columns, totals, strict=True)]
    return markdown_table([*rows, ["GPU hours", "", *spent, "machines times hours"]])


def span(seconds: float) -> str:
    """`2.3 h` or `14 min`."""
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{max(seconds / 60, 0.1):.1f} min"


def main(arguments: Sequence[str]) -> int:
    """Prints the bill, and writes it into a document."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench bill", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, metavar="FILE", help="Markdown; its section is rewritten")
    options = parser.parse_args(arguments)
    check_output(options.output)
    print(section())
    if options.output:
        write_section(options.output, "bench bill", section())
    return 0
