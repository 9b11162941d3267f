"""Numbers and their names as MLflow can store them."""

import math
import re
from collections.abc import Mapping
from typing import Any

from pipeline.config.values import flatten, is_number


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """All finite numbers of a nested mapping, named by their path as MLflow can store it."""
    found = {metric_name(name): float(value) for name, value in flatten(values) if is_number(value)}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def metric_name(name: str) -> str:
    """`hit@5[image→text]` as MLflow can store it: `hit_at_5/image-text`."""
    plain = name.replace("@", "_at_").replace("→", "-").replace("[", "/").replace("]", "")
    return re.sub(r"[^\w/.\- :]", "_", plain)[:250]
