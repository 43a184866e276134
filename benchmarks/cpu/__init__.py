"""Compares the libraries and precisions that can run the networks on a CPU."""
