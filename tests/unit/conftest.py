"""Fixtures that several files of unit tests share."""

from hypothesis import settings

from tests.made_stages import hooks, store

settings.register_profile("patient", deadline=None)  # a busy machine is no failure
settings.load_profile("patient")

__all__ = ["hooks", "store"]
