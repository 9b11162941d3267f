"""features: teacher vectors of a deep layer, once, and the depth curve."""

from pydantic import Field

from stages.params import Section, knob

VERSION = 1


class Params(Section):
    """The section `features`."""

    layer: int = Field(-1, description="teacher layer that is read; -1 is the last, k > 0 is the state after k layers")
    normed: bool = Field(True, description="apply the final norm to the state, as the student's own output has it")
    curve_queries: int = Field(200, ge=1, description="validation queries per task for the depth curve")
    batch_size: int = knob(64, ge=1)
