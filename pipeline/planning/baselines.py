"""What each setting was when it was introduced: `python -m pipeline.planning.baselines` adds the new ones.

A key leaves out a setting that has its first value, so a new setting that changes nothing by itself keeps every
artifact that is there. The present default would not do as that value: a default that changes later has to void, and
nothing else tells it, for the code of a setting is in no key.

Entries are neither changed nor removed, also when their setting goes: were it to come back with another default, its
artifacts would be taken for those of the first.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config.values import walk_values
from pipeline.planning.closure import ROOT
from stages.contract.params import Section

FILE = "pipeline/planning/baselines.json"


def read_baselines(root: Path = ROOT) -> dict[str, Any]:
    """{dotted path: first value} of every setting that there was; empty where `root` has no such file."""
    path = root / FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def missing(known: Mapping[str, Any], config: type[Section]) -> dict[str, Any]:
    """{dotted path: present default} of the settings that have no entry; a knob needs none, it is in no key."""
    return {path: value for path, value, is_knob in walk_values(config()) if not is_knob and path not in known}


def main(root: Path = ROOT) -> None:
    """Adds the present defaults of settings without an entry, and names them."""
    from pipeline.config.sections import Config

    known = read_baselines(root)
    new = missing(known, Config)
    lines = [f"{json.dumps(path)}: {json.dumps(value)}" for path, value in sorted({**known, **new}.items())]
    (root / FILE).write_text("{\n  " + ",\n  ".join(lines) + "\n}\n", encoding="utf-8")
    print(f"{len(new)} new: {', '.join(new)}" if new else "every setting has its entry")


if __name__ == "__main__":
    main()
