"""MLflow: runs and curves, what could not be sent yet, the registry, and students by their registered name."""
