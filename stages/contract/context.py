"""What a stage is given to run with: parameters, inputs, the place to write to, and the tracker.

Only the interfaces that stages use are named here; `pipeline/` provides the objects. A stage sees the configuration
sections that it declares and no others, so that nothing can change a result without changing the artifact's key.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from stages.contract.params import Cluster

IN_NO_KEY = True  # interfaces and kinds of errors: nothing is computed here

Where = Callable[[], Path]
"""Where a directory or file lies on the node that asks; what is not there yet is fetched. Picklable, so that the
driver hands it to workers, which see none of its own paths where the store is a bucket."""


class StageError(Exception):
    """A stage cannot go on; the message is one line that says what is wrong and how to correct it."""


class InputError(Exception):
    """What the user gave is wrong: ends the run with exit code 2 and this one line."""


class Artifact(Protocol):
    """A committed artifact. Opens only files that its manifest lists. Picklable, so that workers can read it."""

    @property
    def stage(self) -> str:
        """The stage that made it."""

    @property
    def key(self) -> str:
        """What it was made of, as a hash."""

    @property
    def uri(self) -> str:
        """Where it lies; `python pipeline/store.py show` opens it."""

    @property
    def manifest(self) -> dict[str, Any]:
        """Its parts, inputs, metrics and files."""

    @property
    def filesystem(self) -> Any:
        """The `pyarrow.fs.FileSystem` that `files` are paths in."""

    def files(self, prefix: str) -> list[str]:
        """Paths of the listed files below `prefix/`, sorted."""

    def read_json(self, name: str) -> Any:
        """The parsed JSON file `name`."""

    def local(self, prefix: str) -> Path:
        """A local directory (or file) that holds the listed files below `prefix`."""


class Attempt(Protocol):
    """The place that a running stage writes to. Nothing in it exists for readers before the manifest is committed."""

    @property
    def stage(self) -> str:
        """The stage that writes."""

    @property
    def key(self) -> str:
        """The key of the artifact that it becomes."""

    @property
    def base(self) -> str:
        """The directory of its files, as a path in `filesystem`."""

    @property
    def work(self) -> Path:
        """A local directory for this stage's own state; after a kill the next attempt of its key finds it again."""

    @property
    def work_uri(self) -> str:
        """The same in `filesystem`, for state that workers on other nodes write, such as checkpoints of Ray Train."""

    @property
    def filesystem(self) -> Any:
        """The `pyarrow.fs.FileSystem` of `base` and `work_uri`; Ray Data writes to `f"{base}/queries"`."""

    def write_json(self, name: str, value: Any) -> None:
        """Writes `value` as JSON to the file `name` of the artifact."""

    def write_bytes(self, name: str, data: bytes) -> None:
        """Writes the file `name` of the artifact, whole or not at all."""

    def open(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A file to write, front to back; when the block ends well, and only then, it is `name` of the artifact."""

    def upload(self, source: Path, name: str) -> None:
        """Copies a local file or directory to `name` in the artifact, each file whole or not at all."""

    def send(self, source: Path) -> Where:
        """A directory or file of this machine, for workers on any node, until the artifact is committed.

        In a directory that all nodes share a store lies, and so does `source`; a bucket gets a copy of it.
        """

    def adopt(self, prefix: str) -> list[str]:
        """Takes over the files below `prefix/` that killed attempts of the same key and inputs had finished.

        Returns their names below `prefix/`, sorted. To be called before this attempt writes there, and only for files
        written by `open`, `write_bytes`, `write_json` or `upload`: through `filesystem` a kill can leave half a file.
        Nothing is adopted by a stage that the user forced.
        """


class Tracker(Protocol):
    """The MLflow run of this stage."""

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Logs numbers, over time when `step` is given."""

    def figure(self, name: str, figure: Any) -> None:
        """Logs a matplotlib figure as the artifact `name` (ends in .png)."""

    def text(self, name: str, content: str) -> None:
        """Logs a text, CSV, HTML or JSON artifact `name`."""

    def dataset(self, name: str, source: str, digest: str, role: str) -> None:
        """Logs which data the stage read or wrote, without loading it."""

    def handle(self) -> Any:
        """A small picklable object with the same `metrics`, for a worker process; it never raises."""


class Shared(Protocol):
    """An artifact that several artifacts of one stage have in common, for as long as the block that asked for it."""

    @property
    def output(self) -> Attempt | None:
        """Where to write it; None where it is in the store."""

    def commit(self) -> Artifact:
        """The artifact: what was found, or what was written, which from here on exists."""


class Share(Protocol):
    """`Context.shared`."""

    def __call__(
        self, name: str, module: str, inputs: Sequence[str], params: Mapping[str, Any]
    ) -> AbstractContextManager[Shared]:
        """The artifact `name` of a key of its own: no other run writes it meanwhile.

        Args:
            name: the store's directory of such artifacts.
            module: the module whose code computes it, with all that it imports.
            inputs: which of the stage's inputs it is made from.
            params: what else changes it.
        """


@dataclass(frozen=True)
class Context:
    """Everything that a stage's `run(context)` may use."""

    params: Any
    """The declared sections as attributes: `context.params.train.loss`, `context.params.seed`."""
    cluster: Cluster
    inputs: Mapping[str, Artifact]
    output: Attempt
    tracker: Tracker
    shared: Share
