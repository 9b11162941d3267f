"""The pipeline: configuration, plan, artifact store, tracking, command line. Planning needs neither torch nor Ray."""
