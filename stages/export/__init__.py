"""The exported student: a stock checkpoint, the parity of its loaders, the card, the MLflow model."""
