"""Carrying out a plan: the runner, the Ray cluster, causes of failures, records of runs, what a run prints."""
