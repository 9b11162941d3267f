"""`python -m tests.nodes > docs/nodes.md`: the runs on nodes that share nothing, from what the tests have left."""

from tests.nodes.outcomes import document

print(document(), end="")
