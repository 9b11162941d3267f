"""Work that needs models, carried out by a pool of actors that load each model once and keep it.

A stage says beforehand all that its models are to do: shards of rows to embed and write, a sample to read by every
layer, a timing. One pool does it all, so a backbone of 7B is loaded once by each actor and not once for each kind of
work, and a small run pays for one start of a process. A timing waits in its actor until the others have nothing left
to do: a pool of its own would load the model once more. What much work has in common, such as a manifest with
thousands of files, each actor gets once, when it starts.
"""

import pickle
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stages.contract.context import Artifact, Context, Where
from stages.contract.params import Cluster
from stages.contract.placement import beside_driver
from stages.distributed.embedding import pool_of, pool_size
from stages.model.loading import load_encoder
from stages.model.reader import RowReader, Side

if TYPE_CHECKING:
    import pyarrow as pa

    from stages.model.encoder import Encoder

SECONDS_BETWEEN_LINES = 30
SECONDS_BETWEEN_LOOKS = 0.2
STUDENT, TEACHER = "student", "teacher"
"""Names of models."""


class Models:
    """What an actor holds: encoders by name, loaded when they are first asked for, and readers of stored rows.

    Args:
        rows: the artifact that texts and pictures are read from.
        places: name → model directory, for whichever node asks.
        cluster: how a process uses its machine.
    """

    def __init__(self, rows: Artifact, places: Mapping[str, Where], cluster: Cluster) -> None:
        self.rows, self.places, self.cluster = rows, places, cluster
        self.batch_size = cluster.batch_size
        self._encoders: dict[str, Encoder] = {}
        self._readers: dict[tuple[Side, str], RowReader] = {}

    def encoder(self, name: str) -> "Encoder":
        """The encoder of that name."""
        if name not in self._encoders:
            self._encoders[name] = load_encoder(self.places[name](), self.cluster)
        return self._encoders[name]

    def reader(self, side: Side, rows: Artifact | None = None) -> RowReader:
        """Turns stored rows of a side into the encoder's rows; `rows` is where another artifact holds them."""
        source = rows or self.rows
        if (side, source.uri) not in self._readers:
            self._readers[side, source.uri] = RowReader(source, side)
        return self._readers[side, source.uri]


@dataclass(frozen=True)
class Work:
    """One thing that an actor does. All of it is picklable, and so is its small result; what is large it writes.

    Attributes:
        call: called with the actor's `Models` and `own`. Work of one kind has the same object here, so that what it
            holds goes to each actor once: with each work, an artifact of 2,000 files would be 104 kB.
        own: the arguments, by name, that no other work has.
    """

    call: Callable[..., Any]
    own: Mapping[str, Any]

    def __call__(self, models: Models) -> Any:
        """The result, by these models."""
        return self.call(models, **self.own)


def carry_out(
    context: Context,
    models: Mapping[str, Where],
    work: Sequence[Work],
    *,
    alone: Sequence[Work] = (),
    rows: Artifact | None = None,
    label: str = "",
) -> list[Any]:
    """The results of `work`, then of `alone`, in their order.

    Args:
        models: name → model directory, for whichever node asks, of the models that work asks for.
        alone: timings, which one actor does while no other works.
        rows: what texts and pictures are read from; the ingest artifact where none is given.
        label: what progress lines call the work.
    """
    import ray
    import ray.data

    given = (rows or context.inputs["ingest"], dict(models), context.cluster)
    everything = [*work, *alone]
    if not everything:
        return []
    calls, tables = packed(everything)
    several = alone and pool_size(context.cluster)[0] > 1
    progress = beside_driver(Finished, len(everything)) if several else None
    done = ray.data.from_arrow(tables).map_batches(
        _Worker,
        fn_constructor_args=(progress, len(work), calls, *given),
        batch_size=1,
        batch_format="pyarrow",
        **pool_of(context.cluster),
    )
    found = {}
    try:
        batches = done.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
        for table in _with_progress(batches, len(everything), label):
            for place, result in zip(table["place"].to_pylist(), table["result"].to_pylist(), strict=True):
                found[place] = pickle.loads(result)
    except BaseException:
        if progress:  # Ray Data lets go of them, but they can keep their GPU for minutes
            for actor in ray.get(progress.actors.remote()):
                ray.kill(actor)
        raise
    finally:
        if progress:
            ray.kill(progress)  # also ends the waiting for work that failed
    return [found[place] for place in range(len(everything))]


def packed(work: Sequence[Work]) -> "tuple[dict[int, Callable[..., Any]], list[pa.Table]]":
    """(what work calls, by a number; a table of one row for each work: its place, that number and what it has own)."""
    import pyarrow as pa

    calls = {id(one.call): one.call for one in work}
    return calls, [
        pa.table({"place": [place], "call": [id(one.call)], "own": [pickle.dumps(one.own)]})
        for place, one in enumerate(work)
    ]


class Finished:
    """An actor that knows which work is not done yet, by its place, and which actors do it."""

    def __init__(self, count: int) -> None:
        self.left = set(range(count))
        self._actors: list[Any] = []

    def enter(self, actor: Any) -> None:
        """This actor of the pool is there."""
        self._actors.append(actor)

    def actors(self) -> list[Any]:
        """The pool's actors."""
        return self._actors

    def note(self, place: int) -> None:
        """The work at that place is done."""
        self.left.discard(place)

    def before(self, place: int) -> int:
        """How much work at lower places is left."""
        return sum(other < place for other in self.left)


class _Worker:
    """The actor of the pool: tables of `packed` in, results out.

    Work from place `alone` on waits for all before it, where `progress` is a `Finished`.
    """

    def __init__(self, progress: Any, alone: int, calls: Mapping[int, Callable[..., Any]], *given: Any) -> None:
        self.progress, self.alone, self.calls = progress, alone, calls
        self.models = Models(*given)
        if progress:
            import ray

            ray.get(progress.enter.remote(ray.get_runtime_context().current_actor))

    def __call__(self, table: Any) -> Any:
        import pyarrow as pa

        results = [
            pickle.dumps(self._carry_out(row["place"], Work(self.calls[row["call"]], pickle.loads(row["own"]))))
            for row in table.to_pylist()
        ]
        return pa.table({"place": table["place"], "result": pa.array(results, pa.large_binary())})

    def _carry_out(self, place: int, work: Work) -> Any:
        import ray

        if place >= self.alone:
            self._take_machine(place)
        result = work(self.models)
        if self.progress:  # and it knows before the result is out: an actor without more to do is ended at once
            ray.get(self.progress.note.remote(place))
        return result

    def _take_machine(self, place: int) -> None:
        """Waits until nothing else works, and takes the cores that the other actors had."""
        import ray
        import torch

        while self.progress and ray.get(self.progress.before.remote(place)):
            time.sleep(SECONDS_BETWEEN_LOOKS)
        if not self.models.cluster.gpus_per_worker:
            torch.set_num_threads(self.models.cluster.threads_each(1))


def _with_progress(tables: Iterable[Any], total: int, label: str) -> Iterator[Any]:
    """Passes the finished work on; now and then says how much is done, and how long the rest takes."""
    start = said = time.monotonic()
    done = 0
    for table in tables:
        yield table
        done += table.num_rows
        now = time.monotonic()
        if label and now - said > SECONDS_BETWEEN_LINES and done < total:
            left = round((now - start) / done * (total - done))
            say(f"{label} {done}/{total}, {left // 60}:{left % 60:02d} left")
            said = now


def say(line: str) -> None:
    """One line of progress."""
    print(line, file=sys.stderr, flush=True)
