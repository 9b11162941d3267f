"""backbone: the full multimodal LLM, from a hub, a directory, or trained here from scratch."""

from typing import Literal

from pydantic import Field

from stages.params import Section, knob

VERSION = 1


class Tiny(Section):
    """A real Qwen2-VL, a few million parameters, trained in the run."""

    layers: int = Field(6, ge=1)
    hidden: int = Field(128, ge=16)
    heads: int = Field(4, ge=1)
    vocabulary: int = Field(1024, ge=300)
    vision_layers: int = Field(2, ge=1)
    vision_hidden: int = Field(128, ge=16)
    patch: int = Field(14, ge=4)
    steps: int = Field(600, ge=1)
    batch_size: int = Field(64, ge=2)
    learning_rate: float = Field(1e-3, gt=0)
    temperature: float = Field(0.05, gt=0)


class Params(Section):
    """The section `backbone`."""

    source: Literal["tiny", "hub", "local"] = "tiny"
    model: str = Field("", description="hub id for `hub`, directory for `local`")
    revision: str = Field("", description="commit of the hub model; required for `hub`")
    min_pixels: int = Field(4 * 28 * 28, ge=1)
    max_pixels: int = Field(300 * 28 * 28, ge=1)
    max_text_tokens: int = Field(450, ge=8)
    tiny: Tiny = Tiny()
    log_every: int = knob(20, ge=1)
