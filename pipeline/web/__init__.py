"""The search server: requests to typed questions, questions to batches, batches to the retriever, and the page."""
