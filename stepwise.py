"""Stepwise as a package: its version, and the command `stepwise`, whose options run.py parses."""

from importlib.metadata import PackageNotFoundError, version

from run import main

__all__ = ["__version__", "main"]

try:
    __version__ = version("stepwise-diffusion")
except PackageNotFoundError:  # a checkout that was never installed; GET /info says the same
    __version__ = "none"
