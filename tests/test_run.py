"""The command line, but for `serve`: what it writes, and how it refuses."""

import json
import sys
from pathlib import Path

import pytest
import torch

from models.checkpoint import ModelConfig, build_model, load_checkpoint, save_checkpoint
from run import main

TINY = ["--arguments", '{"hidden_dim": 32, "depth": 1, "num_heads": 2}']


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
        "model.safetensors", "config.json", "state.safetensors", "loss.csv", "loss.png", "samples/000003.png"
    }  # fmt: skip
    assert len((out / "loss.csv").read_text().splitlines()) == 1 + 3
    config = load_checkpoint(out)[1]
    assert config.arguments == {"hidden_dim": 32, "depth": 1, "num_heads": 2}
    assert config.training["recipe"]["batch_size"] == 4


def test_sample_draws_a_grid(checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "samples.png"
    command = ["sample", "--checkpoints", str(checkpoints), "--models", "dit", "--columns", "1", "--out", str(out)]
    assert main([*command, "--sampler", "ddim", "--steps", "1", "--guidance", "1"]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert out.read_bytes().startswith(b"\x89PNG")


def test_info_prints_parameters_and_flops(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--model", "unet", "--arguments", '{"base_channels": 32}']) == 0
    total = capsys.readouterr().out.splitlines()[-1].split()
    assert total == ["total", "11,119,523", "1,055.03"]


@pytest.mark.parametrize("given", ["0", "65535"])
def test_serve_takes_every_port(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.server.serve", lambda host, port: asked.append((host, port)))
    asked: list[tuple[str, int]] = []
    assert main(["serve", "--port", given]) == 0
    assert asked == [("127.0.0.1", int(given))]


@pytest.mark.parametrize(("misses", "code"), [([], 0), (["DiT: class accuracy 97.00 % (the bar is 98.5 %)"], 1)])
def test_compare_fails_where_the_bar_is_missed(
    misses: list[str], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("training.compare.compare", lambda *_: misses)
    assert main(["compare", "--out", "page.md"]) == code
    said = capsys.readouterr()
    assert said.out == "page.md\n"
    assert said.err.splitlines() == [f"bar missed: {miss}" for miss in misses]


@pytest.mark.parametrize("module", ["matplotlib", "mlxtend", "scipy", "tqdm"])
@pytest.mark.parametrize("command", ["train --model dit --steps 1", "compare"])
def test_a_missing_extra_is_named_before_anything_is_done(
    command: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    assert main(command.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: {command.split()[0]} needs {module}: pip install -c constraints.txt -e '.[train]'"
    assert not list(tmp_path.iterdir())


def test_another_model_does_not_continue_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "run")
    command = ["train", "--model", "dit", "--steps", "1", "--batch-size", "4", "--out", out, *TINY]
    assert main(command) == 0
    assert main([*command, "--lr", "0.5"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: {out}/state.safetensors belongs to another run: lr was 0.001, now 0.5")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train --model dit --steps 0", "error: steps must be at least 1, got 0"),
        ("train --model dit --data cifar10 --data-path no/such.tar.gz", "error: no/such.tar.gz does not exist"),
        ("train --model dit --data cifar10", "error: data cifar10 needs a path: --data-path"),
        ("train --model dit --data mnist", "error: unknown data 'mnist': use digits, cifar10 or folder"),
        ("train --model dit --label-dropout 1.5", "error: label_dropout must lie in 0..1, got 1.5"),
        ('train --model dit --arguments {"hidden_dim":7}', "hidden_dim 7 does not divide into num_heads 8"),
        ("sample --checkpoints nowhere", "error: nowhere/dit/config.json does not exist"),
        ("sample --checkpoints CHECKPOINTS --models dit --steps 0", "error: steps must lie in 1..1000, got 0"),
        ("sample --checkpoints CHECKPOINTS --models dit --sampler heun", "error: unknown sampler 'heun'"),
        ("sample --checkpoints CHECKPOINTS --models dit --guidance nan", "error: guidance must be a finite number"),
        ("sample --checkpoints CHECKPOINTS --models dit --columns 0", "error: columns must be at least 1, got 0"),
        ("compare --checkpoints nowhere", "error: nowhere/dit/config.json does not exist"),
        ("info --model dit --arguments {}x", "argument --arguments: invalid json_object value"),
        ("info --model dit --arguments [1]", "argument --arguments: a JSON object"),
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
    assert message in last
    assert "error: " in last
