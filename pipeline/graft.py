"""Writes a backbone from a language model: python pipeline/graft.py LANGUAGE_MODEL DIRECTORY [--json]

LANGUAGE_MODEL is a Llama or Qwen2 model: a GGUF file, a directory with one, or a directory with config.json and
*.safetensors. DIRECTORY becomes a stock Qwen2-VL that computes the same on texts and has a new vision tower, which is
still to be trained. A run takes it by backbone.source=local backbone.model=DIRECTORY.

Exit codes: 0 done, 2 the input is wrong, 1 it can't be written, 130 interrupted; DIRECTORY is whole or not there.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: its own directory must not be searched for modules, the root must
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from pipeline.collector import spare_collector

    spare_collector()

from pipeline.terminal import Parser, json_command


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = Parser("graft", __doc__.partition("\n\n")[2])
    add = parser.add_argument
    add("language_model", metavar="LANGUAGE_MODEL", type=Path, help="GGUF file or directory of a Llama or Qwen2 model")
    add("directory", metavar="DIRECTORY", type=Path, help="where to write; must be new, or empty")
    add("--json", action="store_true", help="one JSON object on stdout")
    return parser.parse_mixed(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    return json_command(lambda: parse_arguments(given), run_command)


def run_command(options: argparse.Namespace, answer: dict[str, Any]) -> None:
    """Writes the directory and says what it is."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # transformers imports DeepSpeed, which looks for a GPU and says so
    from stages.distributed.training import quiet_libraries
    from stages.model.graft import graft

    quiet_libraries()
    answer |= graft(options.language_model, options.directory)
    if not options.json:
        million = answer["parameters"] / 1e6
        print(f"{answer['directory']}: a Qwen2-VL of {answer['layers']} layers, {million:.0f} million parameters")


if __name__ == "__main__":
    sys.exit(main())
