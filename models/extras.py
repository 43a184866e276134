"""How to install an extra of this package. Imports no torch."""


def how_to_install(extra: str) -> str:
    """The command is right in a checkout and beside a wheel: pip reads the extras of what is installed."""
    return f"pip install 'stepwise-diffusion[{extra}]'"
