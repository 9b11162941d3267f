"""A model directory becomes an encoder on this process's device, with its share of the cores.

Torch is imported inside: OpenMP reads how to wait from the environment when torch loads it, so that is set before.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from stages.contract.params import Cluster

if TYPE_CHECKING:
    from stages.model.encoder import Encoder


def load_encoder(model: Path, cluster: Cluster, layers: int | None = None) -> "Encoder":
    """The encoder of `model` as `cluster` has it: on a GPU or a CPU, at its precision. `layers`: of its first."""
    let_threads_sleep()
    import torch
    from transformers.utils import logging

    from stages.model.encoder import Encoder

    logging.disable_progress_bar()  # one for each actor and model load says nothing about the stage's progress
    logging.set_verbosity_error()  # a head that is left out is a page of warnings; `load_backbone` looks for the rest
    device = "cuda" if cluster.gpus_per_worker > 0 else "cpu"
    if device == "cpu":
        torch.set_num_threads(cluster.threads_each(cluster.actors))
    return Encoder.load(model, layers, cluster.chosen_precision(), device)


def load_encoder_here(model: Path, layers: int | None = None) -> "Encoder":
    """The same on this machine's GPU where it has one, for searches, which know of no cluster."""
    let_threads_sleep()
    import torch

    threads = torch.get_num_threads() if os.environ.get("OMP_NUM_THREADS") else 0  # a replica's share
    return load_encoder(model, Cluster(gpus_per_worker=int(torch.cuda.is_available()), threads=threads), layers)


def let_threads_sleep() -> None:
    """Idle OpenMP threads spin by default: two of them beside another busy process made a query 35 times slower."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
