"""How a command spares the garbage collector, which took a quarter of the CPU time of a run with nothing to do.

Imports make a million objects that stay. To look through them again and again while they are made is in vain, and so
is to look for cycles among them when the process ends: the system takes everything back at once.
"""

import atexit
import gc

OBJECTS = 100_000
"""New ones before the youngest are looked through."""


def spare_collector() -> None:
    """Collects seldom, and not at the end; for a command's own process, before its first large import."""
    gc.set_threshold(OBJECTS)
    atexit.register(gc.freeze)  # the first registered is the last called: what others do at the end is done by then
