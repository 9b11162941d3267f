"""What changes over a training: the learning rate, and τ_hard of MAC-Loss. Pure, and known before torch is."""

import math


def learning_rate_factor(step: int, steps: int, warmup: float) -> float:
    """Factor on the peak learning rate before optimizer step `step`: linear up, then cosine down to zero."""
    ramp = max(1, round(steps * warmup))
    if step < ramp:
        return (step + 1) / ramp
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - ramp) / max(1, steps - ramp))))


def tau_hard_at(progress: float, start: float, decay: float, until: float = 0.5) -> float:
    """τ_hard after a share `progress` of training: start · exp(-2 r min(until, progress)), rounded to thousandths.

    The published rounding makes it a falling staircase. As published it starts at τ_norm and `until` is half time:
    with 0.03 and r 0.5 it goes from 0.030 to 0.018 and stays (PUMA's code).
    """
    return round(start * math.exp(-2 * decay * min(until, progress)), 3)
