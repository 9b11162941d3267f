"""The multimodal encoder: read-out prompt, adapters, pruning, export. Imports neither Ray nor MLflow."""
