"""Which pictures are too narrow for Qwen2-VL; apart, for what sees a part of a picture asks it as well as ingest."""

NARROWEST = 200
"""Qwen2-VL refuses pictures whose sides differ by more than this factor (`smart_resize`)."""


def too_narrow(width: int, height: int) -> bool:
    """Whether the vision tower refuses a picture of this size."""
    return max(width, height) > NARROWEST * min(width, height)
