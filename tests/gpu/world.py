"""One rank on a GPU: `python -m tests.gpu.world CASE_JSON` compares GradCache with the whole batch there."""

import json
import sys
from pathlib import Path

from tests.gradcache_world import apart, update
from tests.support import joined_ranks


def main(case: dict) -> None:
    """Every comparison; with dropout, whose random state on a GPU is another than on a CPU."""
    directory, results = Path(case["model"]), {}
    for stage in (0, 1, 2, 3):
        both = (update(directory, stage=stage, cached=cached, dropout=0.3, device="cuda") for cached in (True, False))
        results[f"zero {stage}"] = apart(*both)
    plain = update(directory, stage=1, cached=False, device="cuda")
    results["dropout matters"] = apart(update(directory, stage=1, cached=False, dropout=0.3, device="cuda"), plain)
    coarse = update(directory, stage=1, cached=False, bf16=True, device="cuda")
    for stage in (1, 3):
        cached = update(directory, stage=stage, cached=True, limit=1, bf16=True, device="cuda")
        results[f"bf16, zero {stage}"] = apart(cached, coarse)
    Path(case["result"]).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    with joined_ranks("nccl"):
        main(json.loads(sys.argv[1]))
