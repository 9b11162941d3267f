"""The stage `features` over a small corpus by one actor without Ray, to count how often it loads the teacher."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from stages import features
from stages.contract.params import Cluster
from stages.distributed import actors
from tests.search_world import open_store, write_model
from tests.support import begin
from tests.training_world import write_ingest


def loads(directory: Path, layer: int | str) -> int:
    """How often the one actor of each pool that `features` starts loads a model, all in all."""
    store = directory / "store"
    inputs = {
        "ingest": write_ingest(store, validation=6),
        "backbone": write_model(open_store(str(store)), "backbone", 2, 1),
    }
    asked = SimpleNamespace(draws=8, smallest_task=0)
    params = features.Params(layer=layer, centre=False, curve_queries=2)
    trained = SimpleNamespace(taught=False)
    context = begin(store, "features", inputs, features=params, seed=0, distill=asked, train=trained)
    load, seen = actors.load_encoder, []

    def counted(*given: Any) -> Any:
        seen.append(given)
        return load(*given)

    def carry_out(context: Any, models: Any, work: Any, *, alone: Any = (), label: str = "") -> list[Any]:
        actor = actors.Models(context.inputs["ingest"], models, Cluster(threads=1, batch_size=4))
        return [one(actor) for one in (*work, *alone)]

    with mock.patch.object(actors, "load_encoder", counted), mock.patch.object(actors, "carry_out", carry_out):
        features.run(context)
    return len(seen)
