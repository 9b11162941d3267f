"""A teacher as a student met it, mean taken off and turned: the encoder of an asymmetric index's candidates."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from stages.model.encoder import Encoder, VisionOutput
from stages.model.inputs import Batch

if TYPE_CHECKING:
    import numpy as np


class Taught(Encoder):
    """An encoder's states less their mean and turned, before they are made unit vectors.

    Args:
        encoder: the teacher, cut to the layer that is read.
        mean: its D values; none leaves the states as they are.
        rotation: [D, D] as `stages.learn.turning` finds it; None leaves their directions.
    """

    def __init__(self, encoder: Encoder, mean: Sequence[float] = (), rotation: "np.ndarray | None" = None) -> None:
        super().__init__(encoder.backbone, encoder.collator)
        self.mean_D = torch.tensor(list(mean) or [0.0], device=encoder.device)
        self.rotation_DD = None if rotation is None else torch.tensor(rotation, device=encoder.device)

    def states(self, batch: Batch, vision: Sequence[VisionOutput | None] | None = None) -> torch.Tensor:
        """See `Encoder.states`."""
        states_BD = super().states(batch, vision) - self.mean_D
        return states_BD if self.rotation_DD is None else states_BD @ self.rotation_DD.to(states_BD)
