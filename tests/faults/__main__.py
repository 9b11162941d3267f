"""`python -m tests.faults > docs/faults.md`: the table of faults, from what the tests have left."""

from tests.faults.outcomes import document

print(document(), end="")
