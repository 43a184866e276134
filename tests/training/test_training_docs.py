"""docs/training.md says what the code does: options, config.json, files of a run, and its network of one's own."""

import json
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from models.checkpoint import DEFAULT_SAMPLING, ModelConfig, load_checkpoint
from run import build_parser, main
from tests.training.runs import Config
from training.config import TrainConfig
from training.image_folder import LITTER
from training.report import generate
from training.train import train

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "training.md").read_text()


def table(heading: str) -> list[list[str]]:
    """Cells of the rows of the first table whose head begins so."""
    lines = PAGE.partition(f"| {heading} |")[2].splitlines()[2:]
    end = next(i for i, line in enumerate(lines) if not line.startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:end]]


def block(language: str, containing: str) -> str:
    blocks = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    (found,) = (text for text in blocks if containing in text)
    return found


def names(cells: list[str]) -> set[str]:
    return {name for cell in cells for name in re.findall(r"`([\w./-]+)`", cell)}


def test_every_option_is_explained_as_in_the_help() -> None:
    expected = []
    for field in fields(TrainConfig):
        facts = field.metadata
        choices = f" ({', '.join(facts['choices'])})" if facts["choices"] else ""
        default = "must be given" if field.name == "model" else facts["shown"] or str(field.default)
        expected.append([f"`--{field.name.replace('_', '-')}`", facts["help"] + choices, default])
    assert table("option") == expected


def test_every_field_of_the_config_is_explained() -> None:
    rows = {row[0].strip("`"): row for row in table("field")}
    assert list(rows) == [field.name for field in fields(ModelConfig)]
    assert names([rows["sampling"][1]]) == set(DEFAULT_SAMPLING)
    assert {name for name, row in rows.items() if row[2] == "required"} == {"architecture", "arguments"}


def test_every_fact_of_the_training_is_explained(tiny_config: Config, tmp_path: Path) -> None:
    train(tiny_config(steps=1))
    source = train(tiny_config(steps=2, measure_every=1))
    more = train(tiny_config(steps=1, init_from=source, out=tmp_path / "more"))
    written = [load_checkpoint(folder)[1].training.keys() for folder in (source, more)]
    assert names([row[0] for row in table("fact")]) == set().union(*written)
    files = names([row[0] for row in table("file")])
    found = {p.name + ("/" if p.is_dir() else "") for p in source.iterdir()}
    assert files == found


def test_what_is_skipped_is_named() -> None:
    assert [name for name in LITTER if f"`{name}`" not in PAGE] == []


def test_the_network_of_ones_own_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "my_net.py").write_text(block("python", "class MyNet"))
    (tmp_path / "mine" / "config.json").write_text(block("json", '"my_net"'))
    subprocess.run([sys.executable, "my_net.py"], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    model, config = load_checkpoint(Path("mine"), "my_net:MyNet")
    images = generate(model, config, torch.tensor([0, 1]), torch.tensor([0, 0]))
    assert images.shape == (2, 3, 48, 64)
    assert not torch.equal(images[0], images[1])
    low = model.bfloat16()(
        torch.zeros(1, 3, 48, 64), torch.zeros(1), torch.tensor([2])
    )  # as the service may run it
    assert low.shape == (1, 3, 48, 64)
    assert main(["info", "mine", "--architecture", "my_net:MyNet"]) == 0
    assert f"{sum(p.numel() for p in model.parameters()):,}" in capsys.readouterr().out
    assert json.loads(block("json", '"my_net"')).keys() <= {field.name for field in fields(ModelConfig)}


def test_every_command_can_be_parsed() -> None:
    scripts = "".join(re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)).replace("\\\n", " ")
    commands = re.findall(r"run\.py (.*)", scripts)
    assert len(commands) > 6
    for command in commands:
        assert build_parser().parse_args(shlex.split(command, comments=True)).run
