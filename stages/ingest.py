"""ingest: any source → validated Parquet."""

from typing import Literal

from pydantic import Field

from stages.params import Section, knob

VERSION = 1


class Scenes(Section):
    """How many of the made pictures, and how hard they are."""

    train: int = Field(1200, ge=16, description="training scenes")
    val: int = Field(150, ge=8)
    test: int = Field(300, ge=8)
    size: int = Field(64, ge=32, le=512, description="pixels of a picture's side")


class Params(Section):
    """The section `data`."""

    kind: Literal["scenes", "mbeir", "pairs"] = "scenes"
    path: str = Field("", description="directory, file or s3:// prefix of the source")
    max_reject_share: float = Field(0.05, ge=0, le=1)
    max_pixels: int = Field(1_048_576, ge=1024, description="larger pictures are scaled down to this many pixels")
    refuse_pixels: int = Field(100_000_000, ge=1024, description="larger pictures are rejected before decoding")
    max_image_bytes: int = Field(20_000_000, ge=1024)
    scenes: Scenes = Scenes()
    rows_per_task: int = knob(2000, ge=1)
