"""From what Ray raises to the one line that a user needs.

An error of a worker arrives wrapped. A task's is inside a RayTaskError; training's inside a WorkerGroupError, one for
each rank; Ray Data's own wrapper loses the error itself, which is then found in the text of the remote traceback. The
wrappers are distinguished by what they have, without importing Ray.
"""

import errno
import os
from collections.abc import Iterator

from pipeline.wording import one_line

FULL = (errno.ENOSPC, errno.EDQUOT)
PLAIN = ("StageError", "InputError")  # whose message is meant for the user as it is
GONE = ("ActorDiedError", "ActorUnavailableError", "NodeDiedError", "OwnerDiedError", "WorkerCrashedError")
"""What Ray raises for a process or a node that is no more; its words are about Ray's own parts."""


def explain(error: BaseException) -> str:
    """The message of a StageError or InputError anywhere in the chain, else the root cause's type and first line."""
    chain = list(error_chain(error))
    for cause in chain:
        if type(cause).__name__ in PLAIN:
            return one_line(str(cause))
    root = chain[-1]
    if full := next(filter(None, map(full_disk, chain[::-1])), ""):
        return one_line(full)
    if type(root).__name__ in GONE:
        return (
            f"a process or node of the run is gone ({type(root).__name__}); Ray's logs say why, often lack of memory"
        )
    if type(root).__name__ == "UserCodeException":
        return root_cause_of(str(chain[-2] if len(chain) > 1 else root))
    lines = [line.strip() for line in str(root).splitlines() if line.strip()]
    return one_line(f"{type(root).__name__}: {lines[0]}" if lines else type(root).__name__)


def full_disk(error: BaseException) -> str:
    """One sentence where the error, or the text of a remote one in it, is that of a full disk; else nothing."""
    known = isinstance(error, OSError) and error.errno in FULL
    if not known and not any(os.strerror(code) in str(error) for code in FULL):
        return ""
    place = getattr(error, "filename", None) or "what the run writes (store, work or temporary files)"
    return f"no space is left for {place}; free some, then run again"


def error_chain(error: BaseException) -> Iterator[BaseException]:
    """The error, what it wraps, and so on down to the root."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        failures = list(getattr(current, "worker_failures", {}).values())
        inner = [*failures, getattr(current, "cause", None), current.__cause__]
        current = next((found for found in inner if isinstance(found, BaseException)), None)


def root_cause_of(traceback: str) -> str:
    """The first error in the text of a remote traceback: the words below its last indented line."""
    lines = traceback.partition("\n\nThe above exception was the direct cause")[0].splitlines()
    last = max((index for index, line in enumerate(lines) if line.startswith(" ")), default=-1)
    words = [line for line in lines[last + 1 :] if line.strip()]
    if not words:
        return one_line(traceback)
    kind, _, message = words[0].partition(": ")
    kind = kind.rpartition(".")[2]
    return one_line(" ".join([message, *words[1:]])) if kind in PLAIN else one_line(f"{kind}: {message}")
