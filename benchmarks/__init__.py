"""Measurements that the documents quote; each module is a command: python -m benchmarks.NAME."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]  # of the repository
