"""Which backend answers the searches of an index of a size, and whether its library is here; light, for a plan."""

from importlib.util import find_spec

from stages.contract.context import InputError

FEW = 100_000
"""Below this many candidates, exact search answers a person at once and no index is worth its misses."""
MODULES = {"lance": "lance", "faiss": "faiss"}
HELD = {"exact": ("float16", "int8", "binary"), "lance": ("float16",), "faiss": ("float16", "int8")}
"""The precisions whose vectors a backend searches. Lance has one-bit codes of its own beside float16."""


def choose(backend: str, rows: int, more: bool = False, precision: str = "float16") -> str:
    """The backend that `index.backend` means for an index of `rows` candidates; `more`: or of more than these.

    Raises:
        InputError: its library is not installed, or it can't search vectors of this precision.
    """
    few = rows < FEW or precision not in HELD["lance"]
    chosen = ("exact" if few else "lance") if backend == "auto" else backend
    if precision not in HELD[chosen]:
        able = " or ".join(name for name in HELD if precision in HELD[name])
        raise InputError(f"{chosen} can't search an index of index.precision={precision}; choose the backend {able}")
    if chosen in MODULES and find_spec(MODULES[chosen]) is None:
        size = f" of {rows:,} candidates{' or more' if more else ''}" if rows else ""
        missing = f"index.backend={backend}{size} needs {chosen}, which is not installed"
        raise InputError(f"{missing}: pip install 'puma-retrieval[{chosen}]', or choose index.backend=exact")
    return chosen
