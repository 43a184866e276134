"""The options of `run.py train`: one for each field of TrainConfig."""

import argparse
import json
from dataclasses import Field
from pathlib import Path
from typing import Any


def add_option(parser: argparse.ArgumentParser, field: Field[Any]) -> None:
    """An option for a field of TrainConfig, explained by its metadata."""
    (kind, metavar), choices = KINDS[field.type], field.metadata["choices"]
    given: dict[str, Any] = {"choices": choices} if choices else {"metavar": metavar}
    given |= {"nargs": "?", "const": True} if kind is boolean else {}  # alone it means true
    default = f" (default: {field.metadata['shown'] or field.default})" if field.name != "model" else ""
    help_text, name = field.metadata["help"] + default, "--" + field.name.replace("_", "-")
    parser.add_argument(name, type=kind, required=field.name == "model", help=help_text.replace("%", "%%"), **given)


def boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"true or false, not {text!r}")
    return text.lower() == "true"


def json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("a JSON object, as in '{\"hidden_dim\": 384}'")
    return value


KINDS: dict[Any, Any] = {  # by the type of a field: how an option is read, and what the help calls its value
    **dict.fromkeys((int, int | None), (int, "N")),
    **dict.fromkeys((Path, Path | None), (Path, "PATH")),
    float: (float, "X"),
    str: (str, "NAME"),
    **dict.fromkeys((bool, bool | None), (boolean, "{true,false}")),
    dict[str, Any]: (json_object, "JSON"),
}
