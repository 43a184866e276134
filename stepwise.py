"""Stepwise as a package: its version, and the command `stepwise`, whose options run.py parses."""

from run import main, version

__all__ = ["__version__", "main"]

__version__ = version()
