"""Command-line options of `run.py`. train has one for each field of TrainConfig."""

import argparse
import json
from dataclasses import Field
from pathlib import Path
from typing import Any

COMPARISON = Path("docs/comparison")
SAMPLING = ("architecture", "columns", "seed", "sampler", "steps", "guidance")  # of add_sampling_options


def add_option(parser: argparse.ArgumentParser, field: Field[Any]) -> None:
    """An option for a field of TrainConfig, explained by its metadata."""
    (kind, metavar), choices = KINDS[field.type], field.metadata["choices"]
    given: dict[str, Any] = {"choices": choices} if choices else {"metavar": metavar}
    given |= {"nargs": "?", "const": True} if kind is boolean else {}  # alone it means true
    default = f" (default: {field.metadata['shown'] or field.default})" if field.name != "model" else ""
    help_text, name = field.metadata["help"] + default, "--" + field.name.replace("_", "-")
    parser.add_argument(name, type=kind, required=field.name == "model", help=help_text.replace("%", "%%"), **given)


def add_architecture(parser: argparse.ArgumentParser) -> None:
    what = "package.module:Class of all checkpoints that are given, where the network is your own"
    parser.add_argument("--architecture", metavar="CLASS", help=f"{what} (default: named by the checkpoint)")


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    add_architecture(parser)
    parser.add_argument("--columns", type=int, default=8, help="images of each class (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first image (default: %(default)s)")
    add_way_options(parser)


def add_way_options(parser: argparse.ArgumentParser) -> None:
    own = "(default: the checkpoint's own)"
    steps = "(default: the checkpoint's own; 10 with a sampler that is not its own, 2 with consistency)"
    parser.add_argument("--sampler", help=f"ddim, ddpm, dpmpp_2m, dpmpp_2m_sde, euler, ab2 or consistency {own}")
    parser.add_argument("--steps", type=int, help=f"evaluations of the network, 1 to 1000 {steps}")
    parser.add_argument("--guidance", type=float, help=f"guidance scale; 1 is off {own}")


def add_evaluation_options(parser: argparse.ArgumentParser) -> None:
    from training.config import DATA  # which imports torch

    add_architecture(parser)
    own = "(default: what the checkpoint was trained on)"
    parser.add_argument("--data", choices=DATA, help=f"what to measure with {own}")
    path = "path of the CIFAR-10 archive or of the folder of pictures (default: none)"
    parser.add_argument("--data-path", type=Path, metavar="PATH", help=path)
    images = "samples that each model draws (default: %(default)s)"
    parser.add_argument("--images", type=int, default=500, metavar="N", help=images)
    add_way_options(parser)
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: what torch chooses)")
    judges = "folder in which the classifiers that grade are kept (default: %(default)s)"
    parser.add_argument("--judge", type=Path, default=Path("runs/judges"), dest="judges", help=judges)
    out = "page to write; its figures stand beside it as JSON (default: %(default)s)"
    parser.add_argument("--out", type=Path, default=Path("runs/evaluation.html"), help=out)


def add_campaign_options(parser: argparse.ArgumentParser) -> None:
    what = "NAME of docs/comparison/NAME.toml, or a TOML file; see training/comparison/campaign_list.py"
    parser.add_argument("--list", type=campaign_list, default="digits", help=f"{what} (default: %(default)s)")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="groups or runs (default: all)")
    runs = "file to which every result adds a line (default: %(default)s)"
    parser.add_argument("--runs", type=Path, default=COMPARISON / "runs.jsonl", help=runs)
    work = "folder of checkpoints (default: runs/campaign; with a --runs of your own, beside it and named as it)"
    parser.add_argument("--work", type=Path, help=work)
    parser.add_argument("--threads", type=int, help="CPU threads (default: what torch chooses)")
    status = "only say what is done, what is next and how many hours are left (default: work)"
    parser.add_argument("--status", action="store_true", help=status)


def work_folder(arguments: argparse.Namespace) -> Path:
    """Of a campaign. Two files of results share none by default, because a name may mean another run in each."""
    ours = arguments.runs == COMPARISON / "runs.jsonl"
    return arguments.work or (Path("runs/campaign") if ours else arguments.runs.with_suffix(""))


def campaign_list(text: str) -> Path:
    return Path(text) if text.endswith(".toml") else COMPARISON / f"{text}.toml"


def add_compare_options(parser: argparse.ArgumentParser) -> None:
    docs = "folder with comparison/questions.toml, comparison/runs.jsonl and comparison/data (default: %(default)s)"
    parser.add_argument("--docs", type=Path, default=Path("docs"), help=docs)
    out = "folder to write comparison.html, comparison.md and comparison/ into (default: that of --docs)"
    parser.add_argument("--out", type=Path, help=out)


def port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"a port lies in 0..65535, not {text!r}")
    return int(text)


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
    **dict.fromkeys((float, float | None), (float, "X")),
    str: (str, "NAME"),
    **dict.fromkeys((bool, bool | None), (boolean, "{true,false}")),
    dict[str, Any]: (json_object, "JSON"),
}
