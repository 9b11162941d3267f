"""Carrying out a plan: launch, runner, the Ray cluster, causes of failures, records of runs, what a run prints."""
