"""Whether two artifacts hold the same: rows, rankings, weights and numbers; not what tells measured times or names."""

import hashlib
import re
from collections import defaultdict
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from safetensors.numpy import load

from pipeline.artifacts.store import Artifact, Store
from pipeline.tracking.client import numbers
from tests.e2e.test_pipeline import STAGES

TOLERANCE = 1e-6
MEASURED = re.compile(r"second|memory|latency|MiB|cost|bytes")


def assert_same(store: Store, expected: Store, until: str) -> None:
    """Each stage up to that one has its one artifact, whole, with what the expected one holds, and nothing else."""
    found, wanted = store.manifests(), expected.manifests()
    for stage in STAGES[: STAGES.index(until) + 1]:
        assert list(found[stage]) == list(wanted[stage])
        (key,) = found[stage]
        artifact, other = store.artifact(stage, key), expected.artifact(stage, key)
        assert artifact.damage() == []
        assert content(artifact) == content(other), stage
        assert apart(measures(artifact), measures(other)) <= TOLERANCE, stage
        for path in (entry["path"] for entry in artifact.manifest["files"]):
            if path.endswith(".safetensors"):
                assert apart(weights(artifact, path), weights(other, path)) <= TOLERANCE, path
    left = [entry.path for entry in store.objects.files(until) if "/_work/" in entry.path]
    assert left == [], "the work directory of a finished stage is still there"


def content(artifact: Artifact) -> dict[str, str]:
    """Digests of rankings, and of all rows below a folder in any order; other files by their presence."""
    found: dict[str, str] = {}
    rows: dict[str, list[str]] = defaultdict(list)
    for path in (entry["path"] for entry in artifact.manifest["files"]):
        if path.endswith(".parquet"):
            table = pq.read_table(f"{artifact.base}/{path}", filesystem=artifact.filesystem)
            rows[str(PurePosixPath(path).parent)] += map(repr, table.to_pylist())
        else:
            found[path] = digest(artifact.read_bytes(path)) if path.endswith(".trec") else "there"
    return found | {folder: digest("\n".join(sorted(some)).encode()) for folder, some in rows.items()}


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def measures(artifact: Artifact) -> dict[str, float]:
    """The numbers of an artifact that do not depend on the machine."""
    found = numbers(artifact.manifest["metrics"])
    return {name: value for name, value in found.items() if not MEASURED.search(name)}


def weights(artifact: Artifact, path: str) -> dict[str, np.ndarray]:
    return load(artifact.read_bytes(path))


def apart(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest difference of two sets of finite numbers of the same names."""
    assert one.keys() == other.keys()
    for name, value in [*one.items(), *other.items()]:
        assert np.isfinite(value).all(), f"{name} is not finite"  # NaN is no larger than the largest difference
    return max((float(np.abs(np.subtract(one[name], other[name])).max()) for name in one), default=0.0)
