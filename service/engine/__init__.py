"""Step-level batching of sampling requests; knows nothing of HTTP."""
