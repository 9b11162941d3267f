"""Work on a trained model as a Ray task where models run: the driver may sit on a head that has memory for none.

What such a task writes goes to the artifact from there, so that weights never pass the driver's machine.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.contract.context import Attempt, Context
from stages.distributed.rotation import ROTATION
from stages.distributed.training import WEIGHTS

if TYPE_CHECKING:
    from ray.train import Checkpoint


def where_models_run(context: Context, function: Callable[..., Any], *arguments: Any) -> Any:
    """`function(context, *arguments)`, carried out with what a training process has: its CPUs, GPUs and node.

    The context comes without its tracker and what it shares, which are the driver's.
    """
    import ray

    cluster = context.cluster
    task = ray.remote(num_cpus=cluster.cpus_per_worker, num_gpus=cluster.gpus_per_worker)(_carry_out)
    given: Any = {"tracker": None, "shared": None}
    return ray.get(task.remote(function, replace(context, **given), *arguments))


def _carry_out(function: Callable[..., Any], context: Context, *arguments: Any) -> Any:
    from stages.model.loading import let_threads_sleep

    let_threads_sleep()
    import torch

    from stages.distributed.console import quiet_libraries

    quiet_libraries()
    torch.set_num_threads(context.cluster.threads_each(1))  # no other process of this run works meanwhile
    return function(context, *arguments)


@contextmanager
def scratch(output: Attempt) -> Iterator[Path]:
    """A directory of this node for the block, where its copies of a store's files lie."""
    output.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.work, prefix="scratch-") as directory:
        yield Path(directory)


def fetch_trained(trained: "Checkpoint", directory: Path) -> Path:
    """Where the last checkpoint's weights and rotation lie on this node: themselves, or a copy in `directory`."""
    from pyarrow import fs

    if trained.filesystem.type_name == "local":
        return Path(trained.path)
    (directory / WEIGHTS).mkdir(parents=True, exist_ok=True)
    for name in (WEIGHTS, ROTATION):
        if trained.filesystem.get_file_info(f"{trained.path}/{name}").type != fs.FileType.NotFound:
            fs.copy_files(f"{trained.path}/{name}", str(directory / name), source_filesystem=trained.filesystem)
    return directory
