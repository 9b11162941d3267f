"""The stages of the DAG, one file each, and the rooms they draw on: data, model, learn, search."""
