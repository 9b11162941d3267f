"""What a person sees of a training: one line for each log step."""

from stages.distributed.console import progress_line
from stages.learn.settings import Training


def test_a_progress_line_tells_the_measures_and_the_time_left():
    settings = Training(steps=300, batch_size=64)
    measures = {"pairs_per_second": 128.0, "loss": 1.2345, "in_batch_hit@1": 0.5, "learning_rate": 5e-4}
    line = progress_line("train", 120, settings, measures | {"tau_hard": 0.023})
    assert line == "train 120/300 loss 1.234 hit@1 0.50 τ 0.023 lr 5.0e-04 128 pairs/s, 1:30 left"
    both = progress_line("train", 120, settings, measures | {"tau_hard": 0.02, "tau_norm": 0.05})
    assert " τ 0.020 τ 0.050 " in both
    assert "feature mse 0.100" in progress_line("distill", 120, settings, measures | {"feature mse": 0.1})
