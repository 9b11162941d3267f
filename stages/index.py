"""index: embed the candidates of the evaluation pools and build the index."""

from typing import Literal

from pydantic import Field

from stages.params import Section, knob

VERSION = 1


class Params(Section):
    """The section `index`."""

    backend: Literal["exact"] = "exact"
    split: Literal["val", "test"] = Field("test", description="the pools of this split are embedded")
    batch_size: int = knob(64, ge=1)
