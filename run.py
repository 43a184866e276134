"""Command line: serve | train | sample | compare | info. Parses, builds a config, calls one function."""

import argparse
import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any


def main(argv: list[str] | None = None) -> int:
    arguments = build_parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except (ValueError, OSError) as error:  # bad input: one sentence, no stack trace
        print(f"error: {error}", file=sys.stderr)
        return 2


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="run.py", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    for add in (
        add_serve,
        add_train,
    ):
        add(commands)
    return parser


def add_serve(commands: Any) -> None:
    parser = commands.add_parser(
        "serve", help="serve checkpoints over HTTP; settings come from the environment"
    )
    parser.set_defaults(run=run_serve)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)


def run_serve(arguments: argparse.Namespace) -> int:
    from service.server import serve

    serve(arguments.host, arguments.port)
    return 0


def add_train(commands: Any) -> None:
    from training.config import TrainConfig

    parser = commands.add_parser("train", help="train dit or unet; continues where an earlier run in --out stopped")
    parser.set_defaults(run=run_train)
    parser.add_argument("--model", choices=("dit", "unet"), required=True)
    parser.add_argument(
        "--arguments", type=json_object, help="constructor arguments, as in '{\"hidden_dim\": 384}'"
    )
    for field in fields(TrainConfig):
        if field.name not in ("model", "arguments"):
            kind = KINDS[field.type]
            parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind)


def run_train(arguments: argparse.Namespace) -> int:
    from training.config import PRESETS, TrainConfig
    from training.train import train

    given = {f.name: getattr(arguments, f.name) for f in fields(TrainConfig)}
    given = {name: value for name, value in given.items() if value is not None}
    print(train(TrainConfig(**(PRESETS[arguments.model] | given))))
    return 0


def boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"true or false, not {text!r}")
    return text.lower() == "true"


KINDS: dict[Any, Any] = {
    int: int, int | None: int, float: float, str: str, bool: boolean, Path: Path, Path | None: Path,
}  # fmt: skip


def json_object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("a JSON object")
    return value


if __name__ == "__main__":
    sys.exit(main())
