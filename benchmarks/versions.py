"""The versions that are recorded with a measurement."""

import subprocess
from importlib.metadata import PackageNotFoundError, version

from benchmarks import ROOT


def output_of(command: list[str]) -> str:
    """What a command prints, run in the repository; empty where there is no such command, or where it fails."""
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def short_commit() -> str:
    """The commit of the checkout; empty outside of one."""
    return output_of(["git", "rev-parse", "--short", "HEAD"])


def package_version(name: str) -> str | None:
    """The version of an installed package; None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
