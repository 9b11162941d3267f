"""Fixtures that several files of unit tests share."""

from tests.made_stages import hooks, store

__all__ = ["hooks", "store"]
