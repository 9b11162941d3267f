"""The backward pass of one step, whole or by exact GradCache: the same gradient at two prices.

Shapes: B rows of this rank (queries and candidates), N rows of all its chunks with fillers, D values of a vector.

A contrastive loss needs the whole batch at once, its graph does not. GradCache (Gao et al. 2021, arXiv 2101.06983)
goes over the batch's chunks twice:

    1. embed every chunk without a graph, and keep the states;
    2. the loss over all states, with all ranks' candidates; keep its gradient at each state;
    3. embed every chunk again, with a graph, and send the kept gradient of its states through it.

By the chain rule the third step's gradients add up to those of the whole batch; a step's memory is that of one chunk,
the states, and one matrix of queries by candidates. Nothing here knows what the loss holds: parameters of its own get
their gradient in step 2.

Exactness rests on three more things. Both passes over a chunk draw the same dropout, by replaying the random state.
A frozen vision tower runs once, its outputs are kept. And DeepSpeed must reduce gradients once, after the last chunk:
it reduces after each backward, and ZeRO-1 and 2 then step with one chunk's gradient instead of the sum, silently.

Under ZeRO-3 a forward pass is a series of collectives, so ranks must run the same modules in the same order: every
rank brings the same number of chunks, and each of them has an image when the vision tower is trained (DeepSpeed #7170:
ranks wait for each other for ever when some have pictures and others none).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from stages.learn.collectives import largest, world_size
from stages.model.encoder import Encoder, VisionOutput
from stages.model.inputs import Batch, Chunk

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

Loss = Callable[[torch.Tensor], tuple[torch.Tensor, dict[str, float]]]
"""States [B, D] of this rank's rows → the scalar to minimise, and its parts for the log."""


def backward(
    engine: "DeepSpeedEngine", encoder: Encoder, batch: Batch, loss_of: Loss, *, cached: bool
) -> tuple[float, dict]:
    """Leaves the gradient of `loss_of` on the engine, ready for `engine.step()`.

    Args:
        engine: DeepSpeed around the encoder, or around a module that passes its arguments on to it.
        encoder: what turns chunks into states.
        batch: this rank's rows, on any device.
        loss_of: may gather other ranks' states; each rank's loss is the mean over its own queries.
        cached: by GradCache, one chunk at a time.

    Returns:
        The loss and its parts.
    """
    if engine.zero_optimization_stage() == 3:
        batch = with_as_many_chunks_as_others(batch, encoder, engine.device)
    run = _in_chunks if cached else _whole
    return run(engine, encoder, batch, loss_of)


def with_as_many_chunks_as_others(batch: Batch, encoder: Encoder, device: torch.device | str) -> Batch:
    """The batch with fillers up to the largest number of chunks of any rank; all ranks must call it."""
    missing = largest(len(batch.chunks), device) - len(batch.chunks)
    return Batch(batch.chunks + (encoder.collator.filler(),) * missing, batch.place_B) if missing else batch


def needs_images(encoder: Encoder) -> bool:
    """Whether every chunk must hold an image: a trained vision tower takes part on all ranks or on none."""
    return world_size() > 1 and not encoder.vision_is_frozen


def _whole(engine: "DeepSpeedEngine", encoder: Encoder, batch: Batch, loss_of: Loss) -> tuple[float, dict]:
    """One graph over all chunks."""
    batch = batch.to(engine.device)
    vision = [encoder.encode_images(chunk) for chunk in batch.chunks] if encoder.vision_is_frozen else None
    loss, parts = loss_of(engine(batch, vision))
    engine.backward(loss)
    return loss.item(), parts


@dataclass(frozen=True)
class Pass:
    """What the first pass over a chunk leaves for the second."""

    chunk: Chunk
    """Still where the collator put it: a batch's pixels need not fit on the device."""
    vision: VisionOutput | None
    """The outputs of a frozen vision tower; a trained one must run again, for its gradient."""
    random: "RandomState"


def _in_chunks(engine: "DeepSpeedEngine", encoder: Encoder, batch: Batch, loss_of: Loss) -> tuple[float, dict]:
    """GradCache; the numbers are the steps of the module header."""
    passes, parts_RD, random = [], [], None
    with torch.no_grad():  # 1
        for chunk in batch.chunks:
            here = chunk.to(engine.device)
            vision = encoder.encode_images(here) if encoder.vision_is_frozen else None
            random = RandomState.now(engine.device, random)
            passes.append(Pass(chunk, vision, random))
            parts_RD.append(engine(Batch.of(here), [vision]))
    states_ND = torch.cat(parts_RD).requires_grad_()
    del parts_RD
    with one_reduction(engine):
        sums = Sums(engine.module)
        loss, parts = loss_of(states_ND[batch.place_B.to(engine.device)])  # 2
        engine.backward(loss)
        sums.take()
        assert states_ND.grad is not None
        gradients = states_ND.grad.split([len(chunk) for chunk in batch.chunks])
        for taken, gradient_RD in zip(passes, gradients, strict=True):  # 3
            with taken.random.replayed():
                states_RD = engine(Batch.of(taken.chunk.to(engine.device)), [taken.vision])
            # The gradient of this sum at the states is the kept one.
            engine.backward((states_RD * gradient_RD).sum())
            sums.take()
        sums.give()
    return loss.item(), parts


class Sums:
    """Adds the chunks' gradients up in fp32 where the parameters are of lower precision.

    A bf16 sum of a hundred chunks is wrong by a percent, and the size of a chunk would decide a result. Gradients are
    changed in place: ZeRO-3 has put the parameters away by now, and a gradient of their shape could not be assigned.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        learnt = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.sums: dict[torch.nn.Parameter, torch.Tensor | None] = {
            parameter: None for parameter in learnt if parameter.dtype != torch.float32
        }

    def take(self) -> None:
        """Moves what the last backward pass left."""
        for parameter, known in self.sums.items():
            if parameter.grad is not None:
                self.sums[parameter] = parameter.grad.float() if known is None else known.add_(parameter.grad)
                parameter.grad.zero_()

    def give(self) -> None:
        """Leaves the sums on the parameters, rounded once."""
        for parameter, known in self.sums.items():
            if known is not None and parameter.grad is not None:
                parameter.grad.copy_(known)


@contextmanager
def one_reduction(engine: "DeepSpeedEngine") -> Iterator[None]:
    """Backward passes inside add up on each rank, and are averaged over ranks once, at the end."""
    if engine.zero_optimization_stage() == 0:
        with engine.no_sync():
            yield
        engine.allreduce_gradients()
    else:
        with engine.coalesce_grad_reduction():
            yield


@dataclass(frozen=True)
class RandomState:
    """The state of the generators that a forward pass on `device` draws from."""

    device: torch.device
    cpu: torch.Tensor
    cuda: torch.Tensor | None

    @classmethod
    def now(cls, device: torch.device | str, last: "RandomState | None" = None) -> "RandomState":
        """The present state: `last` itself where nothing was drawn since, for a state is 5 kB and chunks are many."""
        device = torch.device(device)
        state = cls(device, torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None)
        return last if last and last.equals(state) else state

    def equals(self, other: "RandomState") -> bool:
        """Whether both draw the same from here on; both are of one device."""
        if self.cuda is not None and other.cuda is not None and not torch.equal(self.cuda, other.cuda):
            return False
        return torch.equal(self.cpu, other.cpu)

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Inside, this state holds; afterwards the one from before."""
        with torch.random.fork_rng([] if self.cuda is None else [self.device]):
            torch.set_rng_state(self.cpu)
            if self.cuda is not None:
                torch.cuda.set_rng_state(self.cuda, self.device)
            yield
