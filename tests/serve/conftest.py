"""One server over a small world for all these tests: twelve squares, their descriptions, two untrained models."""

import base64
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
import uvicorn

from pipeline.artifacts.garbage import keep_registered
from pipeline.artifacts.store import Artifact, Store
from pipeline.web.app import build_app
from pipeline.web.engine import Engine
from pipeline.web.guard import Access
from pipeline.web.limits import RequestLimits
from pipeline.web.meters import Meters
from pipeline.web.served import ServedIndex
from pipeline.web.server import bind, server_settings
from tests.search_world import ingest_rows, make_world, picture, write_index, write_run

RED = picture("red")
URL = f"data:image/png;base64,{base64.b64encode(RED.bytes).decode()}"


def message(answer: requests.Response) -> str:
    """The one line of a refusal."""
    told = answer.json()["error"]["message"]
    assert "\n" not in told and len(told) < 400
    return told


@dataclass(frozen=True)
class Served:
    """A running server."""

    url: str
    engine: Engine

    def post(self, path: str = "search", **arguments: Any) -> requests.Response:
        return requests.post(f"{self.url}/{path}", timeout=60, **arguments)

    def get(self, path: str, **arguments: Any) -> requests.Response:
        return requests.get(f"{self.url}/{path}", timeout=60, **arguments)


@contextmanager
def running(app: Any) -> Iterator[str]:
    """The address of `app`, served by uvicorn as the command does it."""
    bound = bind("127.0.0.1", 0)
    server = uvicorn.Server(server_settings(app))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            thread.join(0.02)
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)


@contextmanager
def serving(source: ServedIndex, token: str | None = None, origin: str = "", **limits: Any) -> Iterator[Served]:
    """A server of its own, for other limits, a token, or a proxy's address."""
    asked, meters = RequestLimits(**limits), Meters()
    engine = source.load(asked, meters)
    with running(build_app(engine, Access.of("127.0.0.1", token, origin), asked, meters)) as url:
        yield Served(url, engine)


def write_teacher(store: Store, artifacts: dict[str, Artifact]) -> Artifact:
    """Commits what evaluate stores of the teacher: its vectors of the index's candidates."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from stages.distributed.embedding import vector_column
    from stages.model.encoder import Encoder
    from stages.model.rows import Row
    from tests.search_world import COLOURS

    pictures = {picture(colour).image_id: picture(colour).bytes for colour in COLOURS}
    rows = [row for row in ingest_rows()[1] if "union_test" in row["pools"]]
    encoder = Encoder.load(artifacts["backbone"].local("model"))
    vectors = encoder.encode([Row(row["text"], pictures.get(row["image_id"])) for row in rows])
    table = pa.Table.from_pylist(rows).select(["did", "dataset_id", "modality", "pools"])
    shared = store.begin("teacher", "d" * 16)
    Path(shared.base, "embeddings").mkdir()
    pq.write_table(
        table.append_column("vector", vector_column(vectors, "t")), f"{shared.base}/embeddings/part-0.parquet"
    )
    store.commit(shared, {"metrics": {}})
    attempt = store.begin("evaluate", "c" * 16)
    attempt.write_json("teacher.json", {"teacher": shared.key})
    used = {name: {"key": one.key, "attempt": one.attempt} for name, one in artifacts.items()}
    return store.commit(attempt, {"metrics": {}, "inputs": used})


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A store with one run, all of whose stages are committed."""
    home = tmp_path_factory.mktemp("serve")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        patch.setenv("no_proxy", "127.0.0.1,localhost")
        store, artifacts = make_world(home / "store")
        artifacts["index"] = write_index(store, artifacts)
        artifacts["evaluate"] = write_teacher(store, artifacts)
        write_run(store, artifacts)
        keep_registered(store, "train", artifacts["train"].key, artifacts["train"].attempt, "puma")
        keys = {name: one.key for name, one in artifacts.items()}
        yield SimpleNamespace(store=store, artifacts=artifacts, source=ServedIndex(store, keys, True), home=home)


@pytest.fixture(scope="session")
def server(world: SimpleNamespace) -> Iterator[Served]:
    """The server that most tests ask."""
    with serving(world.source) as served:
        yield served
