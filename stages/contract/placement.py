"""Where an actor of the whole run lives."""

from typing import Any

IN_NO_KEY = True  # where, not what


def beside_driver(kind: type, *arguments: Any) -> Any:
    """An actor of that class on the driver's own node, where it takes no CPU.

    All of a stage's work asks it, so on another node its end would be a second way in which the stage fails; without
    the driver there is no stage anyhow.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(kind).remote(*arguments)
