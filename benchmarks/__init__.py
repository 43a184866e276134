"""Measurements that the README quotes; each module is a command: python -m benchmarks.NAME."""
