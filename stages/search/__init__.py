"""Exact search, retrieval measures, and the retriever behind the command line."""
