"""train: MAC-Loss on all tasks, then the export that every loader reads.

Inputs: ingested pairs, the distilled student. Steps: where `train.mine` asks for it, mine hard negatives with the
distilled student; train with the modality-adaptive contrastive loss (paper §1.4) on Ray Train with DeepSpeed, export,
check the exported directory against the trained weights. Output: `model/` with a model card, `parity.json`, and
`negatives/` where some were mined.
"""

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from stages.contract.context import Context
from stages.contract.params import Adapter, Section, knob

if TYPE_CHECKING:
    from stages.learn.objective import Objective

VERSION = 1


class Mine(Section):
    """The section `train.mine`."""

    per_query: int = Field(0, ge=0, description="hard negatives mined for each train query; 0 mines none")
    margin: float = Field(
        0.95, gt=0, le=1, description="a negative's cosine is below this share of the query's farthest positive's"
    )
    batch_size: int = knob(64, ge=1)


class Params(Section):
    """The section `train`."""

    loss: Literal["mac", "infonce", "mamcl", "learnable"] = Field(
        "mac",
        description="mamcl masks candidates of other modalities than the target's; learnable trains τ as CLIP does",
    )
    steps: int = Field(300, ge=0, description="0 leaves the student as it was distilled")
    batch_size: int = Field(64, ge=2)
    smallest_task: int = Field(0, ge=0, description="repeat the queries of small tasks until an epoch has this many")
    repeat_positives: int = Field(
        1, ge=1, description="a query of several positives comes so often in an epoch at most, once for each"
    )
    sub_batch: int = Field(
        0, ge=0, description="so many neighbours in a batch are of one task, for harder negatives; 0 mixes freely"
    )
    least_crop: float = Field(
        1.0, gt=0, le=1, description="random crops of training images keep this share of the area; 1 shows all whole"
    )
    mirror: bool = Field(
        False, description="every other training image is mirrored; only where left and right mean nothing"
    )
    drop_words: float = Field(
        0.0, ge=0, lt=1, description="a step leaves out this share of the words of queries of text alone"
    )
    learning_rate: float = Field(1e-3, gt=0)
    temperature: float = Field(
        0.03, gt=0, description="τ_norm of MAC-Loss, τ of InfoNCE and MAMCL, where the learnable τ starts"
    )
    symmetric: bool = Field(
        False, description="in-batch candidates are to find their queries as well, as CLIP trains; else queries alone"
    )
    hard_temperature: float = Field(0, ge=0, description="where τ_hard starts; 0 is `temperature`, as published")
    hard_decay: float = Field(0.5, ge=0, description="r of τ_hard(t) = round(start · exp(-2 r min(until, t)), digits)")
    hard_until: float = Field(0.5, ge=0, le=1, description="share of the training after which τ_hard stays")
    hard_digits: int = Field(3, ge=2, description="decimals of τ_hard; the published rounding makes it a staircase")
    hard_negatives: int = Field(
        -1, ge=-1, description="hard negatives of a query that join its steps, given or mined; -1 is mine.per_query"
    )
    matryoshka: tuple[int, ...] = Field(
        (), description="leading dimensions of a vector that must also serve as one; evaluate reports each"
    )
    adapter: Literal["full", "lora"] = Field("full", description="train the whole decoder, or LoRA adapters in it")
    lora: Adapter = Adapter(dropout=0.1)
    first_layer_rate: float = Field(1.0, gt=0, description="factor on the learning rate of the first decoder layer")
    warmup: float = Field(0.03, ge=0, le=1)
    weight_decay: float = Field(0.01, ge=0)
    clip: float = Field(1.0, ge=0)
    muon_rate: float = Field(
        0.0, ge=0, description="Muon trains the layers' matrices at this rate (0.02 is usual, with clip=0); 0 is AdamW"
    )
    seed: int = Field(-1, ge=-1, description="of this stage's random choices; -1 takes the run's `seed`")
    mine: Mine = Mine()
    check_loaders: bool = Field(
        True, description="read the export by every loader here; a student that was not is not registered"
    )
    chunk: int = knob(0, ge=0, description="rows embedded at a time, by GradCache; 0 is the whole batch")
    register_as: str = knob("puma", description="name in the MLflow model registry")
    register_alias: Literal["auto", "always", "never"] = knob(
        "auto", description="make it champion: if at least as good on the same test data; in any case; not at all"
    )
    checkpoint_every: int = knob(100, ge=1, description="steps that a killed run repeats at most")
    log_every: int = knob(25, ge=1)


def run(context: Context) -> dict[str, Any]:
    """Runs the stage; returns its headline metrics."""
    from stages.distributed.student import student_stage
    from stages.mining.mine import mine_negatives

    params = context.params.train
    model = context.inputs["distill"].local("model")
    mined = mine_negatives(context, model) if params.mine.per_query and params.steps else None
    negatives = params.mine.per_query if params.hard_negatives == -1 else params.hard_negatives
    arguments = {"features": None, "mined": mined, "hard_negatives": negatives}
    return student_stage(context, params, model, None, objective(params), **arguments)


def objective(params: Params) -> "Objective":
    """What the stage minimises."""
    from stages.learn.objective import Objective

    return Objective(
        loss=params.loss,
        temperature=params.temperature,
        hard_temperature=params.hard_temperature or None,
        hard_decay=params.hard_decay,
        hard_until=params.hard_until,
        hard_digits=params.hard_digits,
        dims=tuple(sorted(set(params.matryoshka))),
        symmetric=params.symmetric,
    )
