"""Small class-conditional diffusion models: train them, look at them, and serve them with step-level batching."""

import argparse
import importlib.metadata
import importlib.util
import logging
import signal
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from models.extras import how_to_install
from training import options

CHECKPOINT_HELP = "a name in --checkpoints, or the path of a folder with config.json"
CHECKPOINTS_HELP = "folder of checkpoints (default: ./checkpoints, or else the shipped ones)"


def main(argv: list[str] | None = None) -> int:
    try:
        if serving := (sys.argv[1:] if argv is None else argv)[:1] == ["serve"]:
            leave_on_signals()
        arguments = build_parser(serving).parse_args(argv)  # which imports torch, for seconds
        return arguments.run(arguments)
    except (ValueError, OSError) as error:  # bad input: one sentence, no stack trace
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


def leave_on_signals() -> None:
    """Make SIGTERM and SIGINT end this process with exit code 0, until the supervisor sets its own handlers.

    Called before the imports, which take seconds: process 1 of a container never gets a signal without a handler.
    """

    def leave(*_: object) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # one is enough
        sys.exit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)


def build_parser(serving: bool = False) -> argparse.ArgumentParser:
    """serving: without the options of train, which come with torch: 270 MB that the supervisor does not need."""
    name = "stepwise" if Path(sys.argv[0]).stem == "stepwise" else "run.py"
    parser = argparse.ArgumentParser(prog=name, description=__doc__)
    parser.add_argument("--version", action="version", version=f"stepwise {version()}")
    commands = parser.add_subparsers(required=True, metavar="command")
    others = add_train, add_sample, add_evaluate, add_campaign, add_compare, add_info, add_export, add_quantize
    for add in (add_serve, *(() if serving else others)):
        add(commands)
    return parser


def version() -> str:
    try:
        return importlib.metadata.version("stepwise-diffusion")
    except importlib.metadata.PackageNotFoundError:
        return "none"  # a checkout that was never installed


def add_command(commands: Any, run: Any, text: str, examples: str) -> argparse.ArgumentParser:
    """A parser whose help ends with examples; text: what the command does."""
    lines = "".join(f"  %(prog)s {line}".rstrip() + "\n" for line in examples.strip().splitlines())
    parser = commands.add_parser(
        run.__name__.removeprefix("run_"),
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=f"examples:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    return parser


def add_serve(commands: Any) -> None:
    text = "serve checkpoints over HTTP; all other settings are environment variables, see docs/configuration.md"
    parser = add_command(commands, run_serve, text, "--port 8080\n--host 0.0.0.0")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=options.port, default=8000, help="0 takes a free one (default: %(default)s)")


def run_serve(arguments: argparse.Namespace) -> int:
    from service.supervisor import serve

    return serve(arguments.host, arguments.port)


TRAIN_EXAMPLES = """
--model dit --threads 1
--model dit --data folder --data-path my_pictures --steps 400 --out runs/mine
--model dit --init-from checkpoints/dit --steps 2000 --lr 2e-4 --out runs/more
--model dit --init-from runs/dit --few-step --steps 1200 --batch-size 64 --lr 2e-4 --out runs/few
--model unet --data cifar10 --data-path cifar-10-python.tar.gz --out runs/cifar
"""


def add_train(commands: Any) -> None:
    from training.config import TrainConfig

    text = "train a network; the same command continues a run that was stopped, more --steps a finished one"
    parser = add_command(commands, run_train, text, TRAIN_EXAMPLES)
    for field in fields(TrainConfig):
        options.add_option(parser, field)


def run_train(arguments: argparse.Namespace) -> int:
    from training.config import recipe_of
    from training.train import train

    check_train_extra("train")
    given = {name: value for name, value in vars(arguments).items() if value is not None and name != "run"}
    return until_stopped(lambda: train(recipe_of(given)))


def until_stopped(work: Callable[[], object]) -> int:
    """Print what the work returns, and what it logs on the way."""
    from training.stop import Stopped

    logging.basicConfig(format="%(message)s")
    logging.getLogger("training").setLevel(logging.INFO)
    try:
        print(work())
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return stopped.exit_code
    return 0


def add_sample(commands: Any) -> None:
    text = "draw a labelled grid of every checkpoint, side by side"
    parser = add_command(commands, run_sample, text, "\nruns/mine --columns 12 --steps 20 --guidance 2")
    add_checkpoints(parser, ["dit", "unet"])
    parser.add_argument(
        "--out", type=Path, default=Path("runs/samples.png"), help="picture to write (default: %(default)s)"
    )
    options.add_sampling_options(parser)


def add_checkpoints(parser: argparse.ArgumentParser, default: list[str]) -> None:
    shown = f"{CHECKPOINT_HELP} (default: {' '.join(default)})"
    parser.add_argument("names", nargs="*", default=default, metavar="CHECKPOINT", help=shown)
    parser.add_argument("--checkpoints", type=Path, help=CHECKPOINTS_HELP)


def run_sample(arguments: argparse.Namespace) -> int:
    from training.checkpoints import find_checkpoints
    from training.samples import draw_samples

    how = {name: getattr(arguments, name) for name in options.SAMPLING}
    print(draw_samples(find_checkpoints(arguments.names, arguments.checkpoints), arguments.out, **how))
    return 0


def add_compare(commands: Any) -> None:
    text = "write the report on the trainings of the campaign; it trains and samples nothing"
    options.add_compare_options(add_command(commands, run_compare, text, "\n--out runs/report"))


def run_compare(arguments: argparse.Namespace) -> int:
    from training.comparison.report import write_report

    check_train_extra("compare")
    print(*write_report(arguments.docs, arguments.out or arguments.docs), sep="\n")
    return 0


def add_evaluate(commands: Any) -> None:
    text = "measure how good checkpoints are, with intervals, and write one page that says so"
    parser = add_command(commands, run_evaluate, text, "\nruns/mine --data-path my_pictures\ndit --steps 10")
    add_checkpoints(parser, ["dit", "unet"])
    options.add_evaluation_options(parser)


def run_evaluate(arguments: argparse.Namespace) -> int:
    from training.checkpoints import find_checkpoints
    from training.quality import Request, evaluate_checkpoints

    check_train_extra("evaluate")
    folders = find_checkpoints(arguments.names, arguments.checkpoints)
    request = Request(**{field.name: getattr(arguments, field.name) for field in fields(Request)})
    verdicts = evaluate_checkpoints(folders, arguments.out, request)
    print(arguments.out)
    print(*(sentence for _, sentence in verdicts), sep="\n", file=sys.stderr)
    return int(any(word == "not good" for word, _ in verdicts))


CAMPAIGN_EXAMPLES = """
--threads 1
--list tiles --only D6 --status
"""


def add_campaign(commands: Any) -> None:
    text = "train and measure all networks of a list; the same command goes on, and several share the work"
    parser = add_command(commands, run_campaign, text, CAMPAIGN_EXAMPLES)
    options.add_campaign_options(parser)


def run_campaign(arguments: argparse.Namespace) -> int:
    from training.comparison.campaign import Campaign
    from training.comparison.campaign_list import choose, read_list

    check_train_extra("campaign")
    runs = choose(read_list(arguments.list), arguments.only)
    campaign = Campaign(arguments.runs, options.work_folder(arguments), arguments.threads)
    return until_stopped(lambda: campaign.status(runs) if arguments.status else campaign.work_off(runs))


def add_info(commands: Any) -> None:
    text = "describe a checkpoint, or count parameters and FLOPs of a configuration, part by part"
    examples = "dit\nruns/mine\n--model dit --arguments '{\"hidden_dim\": 384}'"
    parser = add_command(commands, run_info, text, examples)
    parser.add_argument("name", nargs="?", metavar="CHECKPOINT", help=CHECKPOINT_HELP)
    parser.add_argument("--checkpoints", type=Path, help=CHECKPOINTS_HELP)
    options.add_architecture(parser)
    parser.add_argument("--model", choices=("dit", "unet"), help="network of a configuration without a checkpoint")
    parser.add_argument(
        "--arguments", type=options.json_object, help="arguments of its constructor as JSON (default: its own)"
    )


def run_info(arguments: argparse.Namespace) -> int:
    from training.checkpoints import find_checkpoint
    from training.info import describe, describe_checkpoint

    if bool(arguments.name) == bool(arguments.model):
        raise ValueError("info needs either a checkpoint or --model")
    if arguments.model:
        print(describe(arguments.model, arguments.arguments or {}))
    else:
        print(describe_checkpoint(find_checkpoint(arguments.name, arguments.checkpoints), arguments.architecture))
    return 0


def add_export(commands: Any) -> None:
    text = "write the graph by which a CPU runs a checkpoint faster into its folder, or an ONNX file of it"
    parser = add_command(commands, run_export, text, "\nruns/mine\ndit --onnx dit.onnx")
    add_checkpoints(parser, ["dit", "unet"])
    options.add_architecture(parser)
    onnx = "ONNX file to write of one checkpoint, weights and all; its graph is left as it is"
    parser.add_argument("--onnx", type=Path, metavar="FILE", help=onnx)


def run_export(arguments: argparse.Namespace) -> int:
    from training.checkpoints import find_checkpoints
    from training.export import export_graph, export_onnx

    if arguments.onnx and len(arguments.names) != 1:
        raise ValueError(f"--onnx writes one checkpoint, got {' '.join(arguments.names)}: name one")
    extra, packages = ("export", ("onnx", "onnxscript")) if arguments.onnx else ("cpu", ("openvino",))
    check_extra("export", extra, packages)
    for folder in find_checkpoints(arguments.names, arguments.checkpoints).values():
        if arguments.onnx:
            print(export_onnx(folder, arguments.onnx, arguments.architecture))
        else:
            print(export_graph(folder, arguments.architecture))
    return 0


def add_quantize(commands: Any) -> None:
    text = "measure the ranges by which DIFFUSION_DTYPE=int8 runs a checkpoint, on what it was trained on"
    parser = add_command(commands, run_quantize, text, "\nruns/mine --images 1000 --data-path my_pictures")
    add_checkpoints(parser, ["dit", "unet"])
    parser.add_argument("--images", type=int, default=512, help="training images to run (default: %(default)s)")
    parser.add_argument("--data-path", type=Path, metavar="PATH", help="of the training data (default: none)")


def run_quantize(arguments: argparse.Namespace) -> int:
    from training.checkpoints import find_checkpoints
    from training.quantize import quantize_checkpoint

    check_extra("quantize", "cpu", ("openvino",))
    for folder in find_checkpoints(arguments.names, arguments.checkpoints).values():
        print(quantize_checkpoint(folder, arguments.images, arguments.data_path))
    return 0


def check_train_extra(command: str) -> None:
    """A run must not end at its last line for want of a plotting library."""
    check_extra(command, "train", ("matplotlib", "mlxtend", "scipy", "tqdm"))


def check_extra(command: str, extra: str, packages: tuple[str, ...]) -> None:
    for name in packages:
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"{command} needs {name}: {how_to_install(extra)}")


if __name__ == "__main__":
    sys.exit(main())
