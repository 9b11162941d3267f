"""Losses, schedules and the DeepSpeed loop. Imports neither Ray nor MLflow."""
