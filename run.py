"""Command line: serve | train | sample | compare | info. Parses, builds a config, calls one function."""

import argparse
import importlib.util
import json
import signal
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

CHECKPOINTS_HELP = "a folder of checkpoints (default: ./checkpoints, or else the shipped ones)"


def main(argv: list[str] | None = None) -> int:
    if (sys.argv[1:] if argv is None else argv)[:1] == ["serve"]:
        leave_on_signals()
    arguments = build_parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except (ValueError, OSError) as error:  # bad input: one sentence, no stack trace
        print(f"error: {error}", file=sys.stderr)
        return 2


def leave_on_signals() -> None:
    """With exit code 0; the server's own handlers take over when it runs, and raise the signal again at its end.

    Called before the imports, which take seconds: as process 1 of a container it would not even hear a signal.
    """

    def leave(*_: object) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # one is enough
        sys.exit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="run.py", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    for add in (
        add_serve,
        add_train,
        add_sample,
        add_compare,
        add_info,
    ):
        add(commands)
    return parser


def add_serve(commands: Any) -> None:
    parser = commands.add_parser("serve", help="serve checkpoints over HTTP; settings come from the environment")
    parser.set_defaults(run=run_serve)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=port, default=8000)


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

    check_train_extra("train")
    given = {f.name: getattr(arguments, f.name) for f in fields(TrainConfig)}
    given = {name: value for name, value in given.items() if value is not None}
    print(train(TrainConfig(**(PRESETS[arguments.model] | given))))
    return 0


def add_sample(commands: Any) -> None:
    parser = commands.add_parser("sample", help="draw a labelled grid of every model, side by side")
    parser.set_defaults(run=run_sample)
    parser.add_argument("--checkpoints", type=Path, help=CHECKPOINTS_HELP)
    parser.add_argument("--models", nargs="+", default=["dit", "unet"], help="folders in --checkpoints")
    parser.add_argument("--out", type=Path, default=Path("docs/samples.png"))
    parser.add_argument("--columns", type=int, default=8, help="images of each class")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sampler")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance", type=float, help="guidance scale; 1 is off")


def run_sample(arguments: argparse.Namespace) -> int:
    from models.checkpoint import default_checkpoints
    from training.samples import draw_samples

    names = ("out", "models", "columns", "seed", "sampler", "steps", "guidance")
    options = {name: getattr(arguments, name) for name in names}
    print(draw_samples(arguments.checkpoints or default_checkpoints(), **options))
    return 0


def add_compare(commands: Any) -> None:
    parser = commands.add_parser("compare", help="measure checkpoints/dit and checkpoints/unet, write a page")
    parser.set_defaults(run=run_compare)
    parser.add_argument("--checkpoints", type=Path, help=CHECKPOINTS_HELP)
    parser.add_argument("--out", type=Path, default=Path("docs/comparison.md"))
    parser.add_argument("--images", type=int, default=1000, help="images sampled from each model")
    parser.add_argument("--judge", type=Path, default=Path("runs/judge"), help="where the classifier is kept")


def run_compare(arguments: argparse.Namespace) -> int:
    from models.checkpoint import default_checkpoints
    from training.compare import compare

    check_train_extra("compare")
    folder = arguments.checkpoints or default_checkpoints()
    misses = compare(folder, arguments.out, arguments.images, arguments.judge)
    print(arguments.out)
    for miss in misses:
        print(f"bar missed: {miss}", file=sys.stderr)
    return 1 if misses else 0


def add_info(commands: Any) -> None:
    parser = commands.add_parser("info", help="parameters and FLOPs of a configuration, part by part")
    parser.set_defaults(run=run_info)
    parser.add_argument("--model", choices=("dit", "unet"), required=True)
    parser.add_argument("--arguments", type=json_object, default={}, help="as in '{\"hidden_dim\": 384}'")


def run_info(arguments: argparse.Namespace) -> int:
    from training.info import describe

    print(describe(arguments.model, arguments.arguments))
    return 0


def check_train_extra(command: str) -> None:
    """A run must not end at its last line for want of a plotting library."""
    for name in ("matplotlib", "mlxtend", "scipy", "tqdm"):
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"{command} needs {name}: pip install -c constraints.txt -e '.[train]'")


def port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"a port lies in 0..65535, not {text!r}")
    return int(text)


def boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"true or false, not {text!r}")
    return text.lower() == "true"


KINDS: dict[Any, Any] = {
    int: int, int | None: int, float: float, str: str, bool | None: boolean, Path: Path, Path | None: Path,
}  # fmt: skip


def json_object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("a JSON object")
    return value


if __name__ == "__main__":
    sys.exit(main())
