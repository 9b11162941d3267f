"""evaluate: retrieval quality and cost of the student beside its teacher."""

from pydantic import Field

from stages.params import Section, knob

VERSION = 1


class Params(Section):
    """The section `evaluate`."""

    queries_per_task: int = Field(0, ge=0, description="at most this many queries of each task, evenly spaced; 0 is all")
    depth: int = Field(50, ge=10, description="ranked candidates kept for each query")
    latency_queries: int = Field(50, ge=5, description="queries timed one at a time, after as many to warm up")
    batch_size: int = knob(64, ge=1)
