"""A teacher whose mean state is taken off, as a student met it: the encoder of an asymmetric index's candidates."""

from collections.abc import Sequence

import torch

from stages.model.encoder import Encoder, VisionOutput
from stages.model.inputs import Batch


class Centred(Encoder):
    """An encoder's states less their mean, before they are made unit vectors.

    Args:
        encoder: the teacher, cut to the layer that is read.
        mean: its D values; none leaves the states as they are.
    """

    def __init__(self, encoder: Encoder, mean: Sequence[float]) -> None:
        super().__init__(encoder.backbone, encoder.collator)
        self.mean_D = torch.tensor(list(mean) or [0.0], device=encoder.device)

    def states(self, batch: Batch, vision: Sequence[VisionOutput | None] | None = None) -> torch.Tensor:
        """See `Encoder.states`."""
        return super().states(batch, vision) - self.mean_D
