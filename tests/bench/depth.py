"""Every depth against what it should cost: the share k / L of the whole decoder, and all of what comes before it.

What comes before (tokens, decoding of pictures, vision tower) is timed by itself in the same round. Beside it the
floor: the counted FLOP at the rate at which this machine multiplies matrices.
"""

import sys
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from stages.evaluation.markdown_table import markdown_table
from tests.bench.embed import inputs, write_student
from tests.bench.floor import SIDE, floor, rate, shares
from tests.bench.turns import ratio, side_by_side, spread, turns

DEPTHS = (3, 6, 9, 12)
KINDS = ("short texts", "long texts", "pictures, 128 × 128", "text and picture")
ROWS, ROUNDS = 16, 5


def depth(directory: Path) -> dict[str, Any]:
    """The ideal time of each depth (k / L of the decoder, plus vision) against the time that it takes."""
    from stages.model.encoder import Encoder

    encoder = Encoder.load(write_student(directory / "large", "large"))
    table = [one for kind in KINDS for one in measure(encoder, kind)]
    cut = [one for one in table if one["layers"] < DEPTHS[-1]]  # all layers are their own ideal
    profiles = [f"- {kind}: {shares(partial(encoder.encode, inputs(ROWS)[kind]))}" for kind in KINDS]
    told = "\n".join([section(table), "", "What takes the time, all layers:", *profiles])
    return side_by_side(cut, told, "rows", "layers")


def measure(encoder: Any, kind: str) -> list[dict[str, Any]]:
    """The depths on rows of a kind, in turns."""
    from stages.evaluation.cost import Depth

    rows = inputs(ROWS)[kind]
    runs = {layers: partial(Depth(encoder, layers).encode, rows, ROWS) for layers in DEPTHS}
    seconds = turns({0: partial(before_decoder, encoder, rows), **runs}, ROUNDS)
    table = []
    for layers in DEPTHS:
        share = layers / DEPTHS[-1]
        ideal = [part + share * (whole - part) for part, whole in zip(seconds[0], seconds[DEPTHS[-1]], strict=True)]
        found = {"ours": {"seconds": median(seconds[layers])}, "rival": {"seconds": median(ideal)}}
        found |= {"ratio": ratio(ideal, seconds[layers]), "floor": floor(encoder, rows, layers)}
        table.append({"rows": kind, "layers": layers, **found})
        print(f"depth: {table[-1]}", file=sys.stderr, flush=True)
    return table


def before_decoder(encoder: Any, rows: list[Any]) -> None:
    """What no pruning of the decoder makes cheaper."""
    import torch

    with torch.inference_mode():
        for _, batch in encoder.batches(rows, ROWS):
            for chunk in batch.chunks:
                encoder.encode_images(chunk)


def section(table: list[dict[str, Any]]) -> str:
    """The measurements as Markdown."""
    lines = [["rows", "layers", "rows/s", "ideal by measured", "in the rounds", "floor by measured"]]
    for one in table:
        took = one["ours"]["seconds"]
        told = [f"{ROWS / took:,.1f}", *spread(one["ratio"]), f"{one['floor'] / took:.2f}"]
        lines.append([one["rows"], str(one["layers"]), *told])
    rated = f"{rate() / 1e9:,.0f} GFLOP/s in a product of {SIDE:,} × {SIDE:,}, float32."
    return f"{markdown_table(lines)}\n\n{rated}"
