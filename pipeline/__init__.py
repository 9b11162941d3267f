"""The pipeline: configuration, plan, artifact store, tracking and the command line. Planning imports no torch and no Ray."""
