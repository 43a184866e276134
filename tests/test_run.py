"""The command line, but for `serve`: what it writes, and how it refuses."""

import importlib.metadata
import json
import shlex
import signal
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from models.checkpoint import ModelConfig, build_model, load_checkpoint, save_checkpoint
from run import build_parser, main
from training.config import PRESETS, TrainConfig
from training.quality import Request

COMMANDS = next(action.choices for action in build_parser()._actions if isinstance(action.choices, dict))
TINY = ["--arguments", '{"hidden_dim": 32, "depth": 1, "num_heads": 2}']


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    """`serve` takes over SIGINT and SIGTERM, which other tests of this process send."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = ModelConfig("dit", json.loads(TINY[1]), sampling={"steps": 2})
    save_checkpoint(tmp_path / "checkpoints" / "dit", build_model(config), config)
    return tmp_path / "checkpoints"


def test_train_writes_a_checkpoint_a_curve_and_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    command = ["train", "--model", "dit", "--steps", "3", "--batch-size", "4", "--out", str(out), *TINY]
    assert main(command) == 0
    assert capsys.readouterr().out.strip() == str(out)
    names = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert names == {
        "model.safetensors", "config.json", "state.safetensors", "loss.csv", "loss.png", "samples/000003.png",
        ".lock", "measures.csv", "best/model.safetensors", "best/config.json",
    }  # fmt: skip
    assert len((out / "loss.csv").read_text().splitlines()) == 1 + 3
    config = load_checkpoint(out)[1]
    assert config.arguments == {"hidden_dim": 32, "depth": 1, "num_heads": 2}
    assert config.training["recipe"]["batch_size"] == 4


def test_sample_draws_a_grid(checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "samples.png"
    command = ["sample", "--checkpoints", str(checkpoints), "dit", "--columns", "1", "--out", str(out)]
    assert main([*command, "--sampler", "ddim", "--steps", "1", "--guidance", "1"]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert out.read_bytes().startswith(b"\x89PNG")


def test_info_prints_parameters_and_flops(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--model", "unet", "--arguments", '{"base_channels": 32}']) == 0
    total = capsys.readouterr().out.splitlines()[-1].split()
    assert total == ["total", "11,119,523", "1,055.03"]


@pytest.mark.parametrize("given", ["0", "65535"])
def test_serve_takes_every_port(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.supervisor.serve", lambda host, port: asked.append((host, port)) or 0)
    asked: list[tuple[str, int]] = []
    assert main(["serve", "--port", given]) == 0
    assert asked == [("127.0.0.1", int(given))]


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [
        ([("good", "dit is good.")], 0),
        ([("unclear", "It is unclear whether dit is good: there are too few pictures.")], 0),
        ([("not good", "dit is not good: it repeats pictures."), ("good", "unet is good.")], 1),
    ],
    ids=["good", "unclear", "not good"],
)
def test_evaluate_fails_where_a_checkpoint_is_not_good(
    verdicts: list[tuple[str, str]],
    code: int,
    checkpoints: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("training.quality.evaluate_checkpoints", lambda *given: asked.append(given) or verdicts)
    asked: list[tuple] = []
    command = ["evaluate", "--checkpoints", str(checkpoints), "dit", "--out", "page.html", "--data-path", "pets"]
    assert main([*command, "--guidance", "2", "--judge", "judges"]) == code
    request = Request(data_path=Path("pets"), guidance=2.0, judges=Path("judges"))
    assert asked == [({"dit": checkpoints / "dit"}, Path("page.html"), request)]
    said = capsys.readouterr()
    assert said.out == "page.html\n"
    assert said.err.splitlines() == [sentence for _, sentence in verdicts]


@pytest.mark.parametrize("module", ["matplotlib", "mlxtend", "scipy", "tqdm"])
@pytest.mark.parametrize("command", ["train --model dit --steps 1", "evaluate"])
def test_a_missing_extra_is_named_before_anything_is_done(
    command: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    assert main(command.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: {command.split()[0]} needs {module}: pip install 'stepwise-diffusion[train]'"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train --model dit --steps 0", "error: steps must be at least 1, got 0"),
        ("train --model dit --data cifar10 --data-path no/such.tar.gz", "error: no/such.tar.gz does not exist"),
        ("train --model dit --data cifar10", "error: data cifar10 needs a path: --data-path"),
        ("train --model dit --data mnist", "argument --data: invalid choice: 'mnist' (choose from"),
        ("train --model dit --label-dropout 1.5", "error: label_dropout must be at least 0 and below 1, got 1.5"),
        ('train --model dit --arguments {"hidden_dim":7}', "hidden_dim 7 does not divide into num_heads 8"),
        ("sample --checkpoints nowhere", "error: no checkpoint 'dit': looked for config.json in "),
        ("sample dit --checkpoints CHECKPOINTS --steps 0", "error: steps must lie in 1..1000, got 0"),
        ("sample dit --checkpoints CHECKPOINTS --sampler heun", "error: unknown sampler 'heun'"),
        ("sample dit --checkpoints CHECKPOINTS --guidance nan", "error: guidance must be a finite number"),
        ("sample dit --checkpoints CHECKPOINTS --columns 0", "error: columns must be at least 1, got 0"),
        (
            "compare --docs nowhere",
            "error: [Errno 2] No such file or directory: 'nowhere/comparison/questions.toml'",
        ),
        ("evaluate --checkpoints nowhere", "error: no checkpoint 'dit': looked for config.json in "),
        ("info --model dit --arguments {}x", "argument --arguments: not JSON: "),
        ("info --model dit --arguments [1]", "argument --arguments: a JSON object"),
        ("train --model dit --threads -1", "error: threads must be at least 1, got -1"),
        ("train --model dit --threads 99999999999", "error: threads must be at most 1024, got 99999999999"),
        ("train --model dit --seed -1", "error: seed must be at least 0, got -1"),
        (f"train --model dit --seed {2**70}", f"error: seed must be at most {2**63 - 1}, got {2**70}"),
        ("train --model dit --lr inf", "error: lr must be positive and finite, got inf"),
        ("train --model dit --lr nan", "error: lr must be positive and finite, got nan"),
        ("train --model dit --clip nan", "error: clip must be positive and finite, got nan"),
        ("train --model dit --weight-decay -1", "error: weight_decay must be at least 0, got -1"),
        ("train --model dit --weight-decay nan", "error: weight_decay must be at least 0, got nan"),
        ("train --model dit --warmup -1", "error: warmup must be at least 0, got -1"),
        ("train --model dit --ema-decay 1", "error: ema_decay must be at least 0 and below 1, got 1"),
        ("train --model dit --init-from nowhere", "error: nowhere/config.json does not exist"),
        (
            "train --model unet --init-from CHECKPOINTS/dit",
            "error: init_from: CHECKPOINTS/dit is a dit, --model says unet",
        ),
        ("train --model dit --out CHECKPOINTS/dit", "holds a checkpoint that this run did not make"),
        (f"sample dit --checkpoints CHECKPOINTS --seed {2**70}", "error: seed must lie in 0..2^62, got"),
        (
            "evaluate dit --checkpoints CHECKPOINTS --images 19",
            "images must be at least 20, two a class, got 19",
        ),
        ("evaluate dit --checkpoints CHECKPOINTS --out a.json", "a.json is the name of its figures"),
        (
            "evaluate dit --checkpoints CHECKPOINTS --out .",
            "error: --out must be a page to write, as in runs/evaluation.html: . is a folder",
        ),
        ("evaluate dit --checkpoints CHECKPOINTS --data folder", "error: data folder needs a path: --data-path"),
        ("evaluate dit CHECKPOINTS/dit --checkpoints CHECKPOINTS", "and CHECKPOINTS/dit have the same name"),
        ("train --model dit --hold-out 0.5", "error: hold_out is for data folder: digits has held-out pictures"),
        ("train --model dit --data folder --hold-out 1", "error: hold_out must be at most 0.9, got 1.0"),
        ("train --model dit --shift -1", "error: shift must be at least 0, got -1"),
        ("train --model dit --measure-every -1", "error: measure_every must be at least 0, got -1"),
        ("info", "error: info needs either a checkpoint or --model"),
        ("info dit --model dit", "error: info needs either a checkpoint or --model"),
        ("info nowhere", "error: no checkpoint 'nowhere': looked for config.json in "),
        ("train --model resnet", "argument --model: invalid choice: 'resnet' (choose from"),
        ("train --model dit --steps many", "argument --steps: invalid int value: 'many'"),
        ("train --model dit --autocast perhaps", "argument --autocast: true or false, not 'perhaps'"),
        ("train", "the following arguments are required: --model"),
        ("paint", "invalid choice: 'paint'"),
        ("serve --port 99999", "argument --port: a port lies in 0..65535, not '99999'"),
        ("serve --port=-1", "argument --port: a port lies in 0..65535, not '-1'"),
        ("serve --port http", "argument --port: a port lies in 0..65535, not 'http'"),
    ],
)
def test_bad_input_ends_in_one_sentence(
    command: str,
    message: str,
    checkpoints: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code = main(command.replace("CHECKPOINTS", str(checkpoints)).split())
    except SystemExit as error:  # argparse
        code = error.code
    assert code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert message.replace("CHECKPOINTS", str(checkpoints)) in last
    assert "error: " in last


def test_info_describes_a_checkpoint(checkpoints: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(checkpoints / "dit")]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line.strip())
    assert lines["architecture"] == "dit"
    assert lines["arguments"] == TINY[1]
    assert lines["classes"] == "10: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert lines["sampling"] == "dpmpp_2m, 2 steps, guidance 1.5"
    model, _ = load_checkpoint(checkpoints / "dit")
    assert lines["total"].split()[0] == f"{sum(p.numel() for p in model.parameters()):,}"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_and_explains_every_option(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    examples = capsys.readouterr().out.partition("examples:\n")[2].splitlines()
    assert examples
    for line in examples:
        assert line.startswith(f"  run.py {command}")
        assert build_parser().parse_args(shlex.split(line)[1:]).run
    without_default = {"help", "architecture", "list", "model", "name", "onnx"}
    for action in COMMANDS[command]._actions:
        assert action.help
        assert action.required or action.dest in without_default or "(default: " in action.help, action.dest


def test_the_training_options_are_those_of_the_config() -> None:
    parser = build_parser().parse_args(["train", "--model", "dit"])
    assert {field.name for field in fields(TrainConfig)} == vars(parser).keys() - {"run"}
    assert all(field.metadata["help"] for field in fields(TrainConfig))
    shown = next(field.metadata["shown"] for field in fields(TrainConfig) if field.name == "steps")
    assert shown == ", ".join(f"{preset['steps']} for {name}" for name, preset in PRESETS.items())


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"stepwise {importlib.metadata.version('stepwise-diffusion')}\n"


@pytest.mark.parametrize(
    ("called", "name"), [("/usr/bin/stepwise", "stepwise"), ("run.py", "run.py"), ("pytest", "run.py")]
)
def test_the_help_names_the_program_as_it_was_called(
    called: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [called])
    assert build_parser().prog == name


def test_a_fine_tuned_run_takes_the_arguments_of_its_checkpoint(checkpoints: Path, tmp_path: Path) -> None:
    command = ["train", "--model", "dit", "--init-from", str(checkpoints / "dit"), "--out", str(tmp_path / "more")]
    assert main([*command, "--steps", "1", "--batch-size", "2"]) == 0
    config = load_checkpoint(tmp_path / "more")[1]
    assert config.arguments == json.loads(TINY[1])
    assert config.training["init_sha256"] == load_checkpoint(checkpoints / "dit")[1].sha256


@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_nothing_is_written_into_the_docs_unless_asked(command: str) -> None:
    arguments = build_parser().parse_args([command])
    assert arguments.out.parts[0] == "runs"
