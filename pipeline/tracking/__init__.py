"""MLflow: runs and curves, what could not be sent yet, and the registry."""
