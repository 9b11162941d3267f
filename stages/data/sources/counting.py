"""How many candidates an index of a source will hold, told by the source's files before anything is ingested."""

import re

from stages.data.sources.mbeir import candidate_files, implied_unions
from stages.data.sources.remote import Place

DID = re.compile(rb'"did"\s*:\s*"([^"]*)"')


def count_candidates(root: Place, split: str, most: int) -> int:
    """Distinct candidates in the union pool of a split of an M-BEIR directory; counts no further than `most`."""
    files = candidate_files(root)
    pools = sorted(file.pool for file in files if file.pool)
    wanted = implied_unions(pools).get(f"union_{split}", {f"union_{split}"})
    found: set[bytes] = set()
    for file in files:
        if file.pool in wanted:
            with file.below(root).open("rb") as lines:
                for line in lines:
                    found.update(DID.findall(line))
                    if len(found) >= most:
                        return most
    return len(found)
