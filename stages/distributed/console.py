"""What a training says on the terminal, and what it keeps libraries from saying."""

import logging
import shutil
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stages.contract.context import StageError

IN_NO_KEY = True  # words only
FULL = 2**20  # bytes that a full disk may have left
OURS = f"{StageError.__module__}.{StageError.__qualname__}: "


def root_cause(error: BaseException) -> str:
    """The last line of the innermost worker error: what a person needs first."""
    failures = getattr(error, "worker_failures", None) or {}
    cause = next(iter(failures.values()), error)
    lines = [line for line in str(cause).strip().splitlines() if line.strip()]
    return lines[-1].strip().removeprefix(OURS) if lines else type(cause).__name__


@contextmanager
def room_in(directory: Path, what: str) -> Iterator[None]:
    """Says of a disk that got full while the block wrote to `directory` that it is full; a half is taken away.

    torch tells only at which byte of its file it stood, in a RuntimeError.

    Raises:
        StageError: the disk is full.
    """
    try:
        yield
    except Exception as error:  # whatever the library that writes raises
        free = shutil.disk_usage(directory).free
        shutil.rmtree(directory, ignore_errors=True)
        if free >= FULL:
            raise
        place = f"{directory.parent} on {socket.gethostname()}"
        raise StageError(f"no space is left in {place} for {what}; free some, then run again") from error


def progress_line(label: str, step: int, settings: Any, measures: dict[str, float]) -> str:
    """One line of progress: `train 120/300 loss 1.234 hit@1 0.71 τ 0.023 lr 3.0e-04 210 pairs/s, 0:52 left`."""
    speed = measures["pairs_per_second"]
    left = round((settings.steps - step) * settings.batch_size / speed)
    parts = [f"{label} {step}/{settings.steps}", f"loss {measures['loss']:.3f}"]
    if "in_batch_hit@1" in measures:
        parts.append(f"hit@1 {measures['in_batch_hit@1']:.2f}")
    parts += [f"{name} {value:.3f}" for name, value in measures.items() if name.startswith("feature ")]
    parts += [f"τ {measures[name]:.3f}" for name in ("tau_hard", "tau_norm", "tau") if name in measures]
    rates = {"lr": "learning_rate", "muon lr": "muon_rate"}
    parts += [f"{name} {measures[key]:.1e}" for name, key in rates.items() if key in measures]
    return " ".join([*parts, f"{speed:.0f} pairs/s, {left // 60}:{left % 60:02d} left"])


def quiet_libraries() -> None:
    """DeepSpeed and transformers log every detail of every start; warnings and errors are what a user needs."""
    import transformers

    # DeepSpeed calls a collective that torch has renamed, at every start.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    logging.getLogger("deepspeed").setLevel(logging.WARNING)
