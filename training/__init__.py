"""Training, evaluation and the comparison of the two architectures."""
