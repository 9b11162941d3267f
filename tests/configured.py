"""Configurations that tests give: a commit, a checkpoint's directory, and what is said against them."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from pipeline.config.load import load_config
from stages.contract.context import InputError

COMMIT = "0123456789abcdef" * 2 + "01234567"


def refusal(*overrides: str, recipe: str = "demo") -> str:
    """The one line that refuses the overrides of a recipe."""
    with pytest.raises(InputError) as caught:
        load_config(recipe, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def checkpoint(directory: Path, **config: object) -> list[str]:
    """Makes one, with one weight; the overrides that name it as backbone."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    save_file({"norm.weight": np.zeros(1, np.float16)}, directory / "model.safetensors")
    return ["backbone.source=local", f"backbone.model={directory}"]
