"""A small world for tests of index, evaluate and search: an ingest artifact and two untrained models in a store."""

import io
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.artifacts.store import Artifact, Attempt, Store, open_store
from pipeline.config.sections import Config
from pipeline.execution.shared import SharedArtifacts
from stages import index
from stages.contract.context import Context
from stages.contract.params import Cluster
from stages.data import images, schemas
from stages.distributed.rotation import keep_rotation
from stages.search.precision import Precision, find_ranges
from tests.support import Recorder

COLOURS = ("red", "green", "blue", "yellow", "cyan", "magenta", "black", "white", "orange", "purple", "brown", "pink")
DATASET = "shop"
TRAINED = 10  # colours of which the training pool has pictures and descriptions


@dataclass
class Witness(Recorder):
    """A tracker that also remembers the names of texts and figures."""

    names: list[str] = field(default_factory=list)

    def figure(self, name: str, figure: Any) -> None:
        self.names.append(name)

    def text(self, name: str, content: str) -> None:
        self.names.append(name)


def picture(colour: str) -> images.Checked:
    """A square of one colour with a darker corner, checked as ingest checks it."""
    canvas = Image.new("RGB", (56, 56), colour)
    canvas.paste((40, 40, 40), (0, 0, 14, 14))
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG")
    return images.check(buffer.getvalue(), images.ImageLimits())


def write_rows(attempt: Attempt, name: str, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    """One Parquet file of an ingest artifact."""
    path = Path(attempt.base, name)
    path.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path / "part-0.parquet")


def ingest_rows(split: str = "test") -> tuple[list[dict], list[dict]]:
    """Queries of one split and of train, and candidates: task 0 asks for the picture of a colour, task 3 for its
    description."""
    candidates, queries = [], []
    for number, colour in enumerate(COLOURS):
        shown = {"dataset_id": 9, "text": None, "image_id": picture(colour).image_id, "modality": "image"}
        told = {"dataset_id": 9, "text": f"A {colour} square.", "image_id": None, "modality": "text"}
        trained = ["union_train"] if number < TRAINED else []
        union = f"union_{split}"
        pools = ([f"{DATASET}_task0", union, *trained], [f"{DATASET}_task3", union, *trained])
        candidates.append({"did": f"9:{number}", "content_id": f"i{number}", "pools": pools[0], **shown})
        candidates.append({"did": f"9:{100 + number}", "content_id": f"t{number}", "pools": pools[1], **told})
        common = {"split": split, "dataset": DATASET, "dataset_id": 9, "negatives": []}
        asked = {"modality": "text", "target_modality": "image", "text": f"Something {colour}.", "image_id": None}
        queries.append(
            {"qid": f"9:{number}", "task_id": 0, "positives": [f"9:{number}"], "pool": pools[0][0], **common, **asked}
        )
        asked = {"modality": "image", "target_modality": "text", "text": None, "image_id": shown["image_id"]}
        queries.append({"qid": f"9:{50 + number}", "task_id": 3, "positives": [f"9:{100 + number}", "9:999"],
                        "pool": pools[1][0], **common, **asked})  # fmt: skip
    elsewhere = {"did": "9:500", "content_id": "e", "pools": ["union_val"], "dataset_id": 9, "text": "Not here."}
    candidates.append({**elsewhere, "image_id": None, "modality": "text"})
    queries += [
        {**query, "qid": f"9:{900 + number}", "split": "train", "pool": None}
        for number, query in enumerate(queries[: 2 * TRAINED])
    ]
    return queries, candidates


def write_ingest(store: Store, split: str = "test") -> Artifact:
    """Commits the ingest artifact."""
    attempt = store.begin("ingest", "0" * 16)
    queries, candidates = ingest_rows(split)
    write_rows(attempt, "queries", queries, schemas.QUERIES)
    write_rows(attempt, "candidates", candidates, schemas.CANDIDATES)
    checked = {one.image_id: one for one in map(picture, COLOURS)}
    write_rows(attempt, "images", [vars(one) for one in checked.values()], schemas.IMAGES)
    told = {"dataset_id": 9, "dataset": DATASET}
    prompts = [
        {**told, "query_modality": "text", "target_modality": "image", "prompts": ["Find the picture.", "Show it."]},
        {**told, "query_modality": "image", "target_modality": "text", "prompts": ["Describe the picture."]},
    ]
    write_rows(attempt, "instructions", prompts, schemas.INSTRUCTIONS)
    return store.commit(attempt, {"metrics": {}})


def write_model(
    store: Store,
    stage: str,
    layers: int,
    seed: int,
    dims: tuple[int, ...] = (),
    rotation: np.ndarray | None = None,
) -> Artifact:
    """Commits an untrained tiny model as the artifact of `stage`, said to be trained for leading dimensions `dims`.

    `rotation` is what its teacher was turned by.
    """
    from stages.model.tiny import tiny_config, train_tokenizer, write_tiny

    attempt = store.begin(stage, f"{seed:016d}")
    tokenizer = train_tokenizer([f"A {colour} square." for colour in COLOURS], 320)
    sizes = {"layers": layers, "hidden": 32, "heads": 2, "vision_layers": 1, "vision_hidden": 32, "patch": 14}
    config = tiny_config(tokenizer, **sizes)
    directory = Path(attempt.base, "model")
    directory.mkdir()
    limits = {"min_pixels": 28 * 28, "max_pixels": 56 * 56, "max_text_characters": 160}
    config.matryoshka_dimensions = list(dims)
    write_tiny(directory, tokenizer, config, **limits, seed=seed)
    turned = keep_rotation(attempt, None, rotation)
    return store.commit(attempt, {"metrics": {"source": "tiny", "turned": turned}})


def make_world(root: Path) -> tuple[Store, dict[str, Artifact]]:
    """A store with everything that `index` reads."""
    store = open_store(str(root))
    inputs = {"ingest": write_ingest(store)}
    inputs["backbone"] = write_model(store, "backbone", 2, 1)
    inputs["features"] = write_features(store, 2)
    inputs["train"] = write_model(store, "train", 1, 2, dims=(16,))
    return store, inputs


def write_features(store: Store, layer: int, **more: Any) -> Artifact:
    """Commits what other stages ask of features: which layer of the teacher taught, with its `mean` where one is."""
    attempt = store.begin("features", f"{layer:016d}")
    attempt.write_json("features.json", {"layer": layer, **more})
    return store.commit(attempt, {"metrics": {}})


def share_in(store: Store, inputs: dict[str, Artifact]) -> SharedArtifacts:
    """`Context.shared` of a stage that runs by itself."""
    return SharedArtifacts(store, inputs, {}, {}, print)


def run_stage(
    store: Store, inputs: dict[str, Artifact], stage: str, params: Any, key: str = "f" * 16
) -> tuple[Artifact, dict, Witness]:
    """Runs one stage by its module and commits what it wrote."""
    tracker = Witness()
    attempt = store.begin(stage, key)
    context = Context(
        SimpleNamespace(**{stage: params}),
        Cluster(threads=1, batch_size=4),
        inputs,
        attempt,
        tracker,
        share_in(store, inputs),
    )
    metrics = import_module(f"stages.{stage}").run(context)
    return store.commit(attempt, {"metrics": metrics}), metrics, tracker


def write_index(
    store: Store,
    inputs: dict[str, Artifact],
    key: str = "e" * 16,
    candidates: str = "student",
    precision: str = "float16",
) -> Artifact:
    """Commits an index as the stage writes it, made without Ray by the encoder of its candidates."""
    from stages.distributed.embedding import vector_column
    from stages.distributed.rotation import read_rotation
    from stages.distributed.teacher import taught
    from stages.index import describe, summarise_pools
    from stages.model.encoder import Encoder
    from stages.model.rows import Row
    from stages.model.taught import Taught

    if candidates == "student":
        encoder = Encoder.load(inputs["train"].local("model"))
    else:
        read = taught(inputs["features"])
        rotation = read_rotation(inputs["train"])
        encoder = Taught(Encoder.load(inputs["backbone"].local("model"), read.layer), read.mean, rotation)
    pictures = {picture(colour).image_id: picture(colour).bytes for colour in COLOURS}
    rows = [row for row in ingest_rows()[1] if "union_test" in row["pools"]]
    vectors = encoder.encode([Row(row["text"], pictures.get(row["image_id"])) for row in rows])
    attempt = store.begin("index", key)
    table = pa.Table.from_pylist(rows).select(["did", "dataset_id", "modality", "pools"])
    table = table.append_column("vector", vector_column(vectors, "test")).cast(schemas.EMBEDDINGS(encoder.dim))
    coding = Precision(precision, encoder.dim, find_ranges([vectors]) if precision == "int8" else None)
    Path(attempt.base, "embeddings").mkdir()
    pq.write_table(coding.encoded(table), f"{attempt.base}/embeddings/part-0.parquet")
    context = Context(
        SimpleNamespace(index=index.Params(candidates=candidates)),
        Cluster(),
        inputs,
        attempt,
        Witness(),
        share_in(store, inputs),
    )
    card = describe(context, summarise_pools(inputs["ingest"], "test"), encoder.dim) | {"backend": "exact"}
    card |= coding.describe()
    attempt.write_json("retriever.json", card)
    return store.commit(attempt, {"metrics": {}})


def write_run(store: Store, artifacts: dict[str, Artifact], run: str = "1", **overrides: Any) -> None:
    """Records a pipeline run that made these artifacts; `overrides` are sections of its configuration."""
    config = Config(store=str(store.root), **overrides).model_dump(mode="json")
    stages = {name: {"key": artifact.key, "action": "run"} for name, artifact in artifacts.items()}
    store.write_run({"id": run, "started": f"2026-01-0{run}", "config": config, "stages": stages})
