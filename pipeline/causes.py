"""From what Ray raises to the one line that a user needs.

An error of a worker arrives wrapped: in a RayTaskError that holds the remote traceback as its text, for training in a
WorkerGroupError with one failure for each rank. They are opened by their attributes, without importing Ray.
"""

from collections.abc import Iterator

from stages.context import InputError, StageError


def explain(error: BaseException) -> str:
    """The message of a StageError or InputError anywhere in the chain, else the root cause's type and first line."""
    chain = list(causes(error))
    for cause in chain:
        if type(cause) in (StageError, InputError):
            return " ".join(str(cause).split())
    root = chain[-1]
    lines = [line.strip() for line in str(root).splitlines() if line.strip()]
    return f"{type(root).__name__}: {lines[0]}"[:400] if lines else type(root).__name__


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what it wraps, and so on down to the root."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        failures = list(getattr(current, "worker_failures", {}).values())
        inner = [*failures, getattr(current, "cause", None), current.__cause__]
        current = next((found for found in inner if isinstance(found, BaseException)), None)
