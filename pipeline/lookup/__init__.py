"""From what a command names to what it means: the student, the index of a run, the queries; and what is shown."""
