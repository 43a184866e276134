"""`run.py evaluate`: figures, verdict and page."""

import json
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from models.checkpoint import CheckpointError, ModelConfig, load_checkpoint
from run import main
from tests.checkpoints import write_checkpoint
from tests.training.conftest import TINY
from tests.training.pictures import write_pictures
from tests.training.runs import Config
from training import judge as judge_module
from training import quality as module
from training.data import Data, DataError, Split, take_subset
from training.graded import grade_samples, losses
from training.judge import Judge, train_judge
from training.machine import describe_machine
from training.quality import Request, cases_of, data_of, evaluate_checkpoints, step_times
from training.quality_page import answer, verdict
from training.train import train

PETS = {"cat": 30, "dog": 30, "emu": 30}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_module, "EPOCHS", 1)
    monkeypatch.setattr(module, "REPEATS", 1)


def bright(count: int, seed: int) -> Split:
    """Two classes that differ by their brightness."""
    labels = torch.arange(count) % 2
    noise = torch.randint(0, 60, (count, 3, 32, 32), generator=torch.Generator().manual_seed(seed))
    return Split((noise + 150 * labels[:, None, None, None]).byte(), labels)


@pytest.fixture(scope="module")
def judges() -> list[Judge]:
    return [train_judge(bright(60, 1), 2, seed=seed, epochs=3) for seed in range(2)]


@pytest.fixture(scope="module")
def brightness() -> Data:
    return Data(bright(60, 0), bright(60, 1), bright(80, 2), ["dark", "bright"])


def test_real_pictures_as_samples_get_the_figures_of_real_pictures(judges: list[Judge], brightness: Data) -> None:
    found = grade_samples(bright(100, 3), brightness, judges)
    figures = found["figures"]
    assert found["matched"] == 40
    for name in ("accuracy", "precision", "recall", "kid", "copies"):
        assert figures[name].low <= figures[name].real <= figures[name].high, name
        real = figures[f"{name}_real"]
        assert real.low <= figures[name].real == real.value <= real.high, name
    assert figures["ratio"].low < 1 < figures["ratio"].high
    assert figures["below_real"].low < 0 < figures["below_real"].high < 0.1
    assert found["accuracy_by_class"] == {"dark": 1, "bright": 1}
    assert all(figure.low <= figure.value <= figure.high for figure in figures.values())
    assert (figures["accuracy"].value, figures["accuracy"].high) == (1, 1)
    assert figures["accuracy"].low == pytest.approx(0.963, abs=1e-3)  # of 100, by Wilson


def test_wrong_classes_and_copies_are_told(judges: list[Judge], brightness: Data) -> None:
    swapped = bright(100, 3)
    figures = grade_samples(Split(swapped.images, 1 - swapped.labels), brightness, judges)["figures"]
    assert figures["accuracy"].high < 0.05
    assert figures["below_real"].low > 0.9
    figures = grade_samples(brightness.train, brightness, judges)["figures"]
    assert (figures["copies"].value, figures["copies"].real) == (1, 0)


def test_more_samples_give_narrower_intervals(judges: list[Judge]) -> None:
    widths = []
    for count in (40, 400):
        data = Data(bright(count, 4), bright(count, 5), bright(count, 6), ["a", "b"])
        figures = grade_samples(bright(count, 3), data, judges)
        kid = figures["figures"]["kid"]
        widths.append(kid.high - kid.low)
    assert widths[1] < widths[0] / 2


def test_losses_have_intervals(checkpoints: Path, digits: Data) -> None:
    few = Data(take_subset(digits.train, "60"), digits.judge, take_subset(digits.test, "80"), digits.class_names)
    model, config = load_checkpoint(checkpoints / "unet")
    found = losses(model, config, few)
    assert found["images"] == 60
    for part in ("held_out", "train"):
        assert len(found[part]["levels"]) == len(found["u"]) == 8
        assert 0 < found[part]["mean"].low < found[part]["mean"].value < found[part]["mean"].high


def test_step_times_count_rows_not_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([9.0] * 4 + [0.001, 0.008, 0.003, 0.010, 0.002, 0.009])
    monkeypatch.setattr(module, "REPEATS", 3)
    monkeypatch.setattr(module, "time_forward", lambda model, shape, rows: next(seconds))
    assert step_times({"dit": (nn.Identity(), (3, 8, 8))}) == {"dit": {"1": 2.0, "8": 9.0}}


def test_the_machine_is_described() -> None:
    assert f"{torch.get_num_threads()} torch threads" in describe_machine()
    assert f"torch {torch.__version__}" in describe_machine()


@pytest.fixture
def trained(tmp_path: Path, tiny_config: Config) -> Path:
    """A run on a folder of 90 pictures, of which 18 are held out."""
    pets = write_pictures(tmp_path / "pets", PETS)
    return train(tiny_config(data="folder", data_path=pets, steps=1, out=tmp_path / "mine"))


@pytest.mark.usefixtures("quick")
def test_a_folder_of_ones_own_gets_one_page(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, config = tmp_path / "new" / "page.html", trained / "config.json"
    config.write_text(config.read_text().replace('"architecture": "dit"', '"architecture": "my_net"'))
    command = ["evaluate", str(trained), "--data-path", str(tmp_path / "pets"), "--images", "30", "--steps", "2"]
    command += ["--architecture", "models.dit_model:DIT", "--judge", str(tmp_path / "judges"), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["somewhere/run.py", *command])
    code = main()
    assert {path.name for path in out.parent.iterdir()} == {"page.html", "page.json"}
    assert len(list((tmp_path / "judges").iterdir())) == 3
    raw = json.loads(out.with_suffix(".json").read_text())
    facts = raw["checkpoints"]["mine"]
    assert (facts["train_images"], facts["held_out"], facts["judge_images"]) == (72, 18, 72)
    assert (facts["data"], facts["data_path"]) == ("folder", str(tmp_path / "pets"))
    assert raw["command"] == shlex.join(["run.py", *command])
    assert facts["same_data"] is facts["judge_saw_training"] is True
    assert (facts["samples"], facts["matched"], facts["sampling"]["steps"]) == (30, 9, 2)
    assert set(facts["step_ms"]) == {"1", "8"}
    text = out.read_text()
    assert text.count('src="data:image/png;base64,') == 2
    assert not re.search(r'(?:src|href)="(?!data:)', text)
    assert "it learnt from the training pictures" in text
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == str(out)
    word, _ = verdict(facts)
    assert code == int(word == "not good")
    assert f"<strong>{answer('mine', facts)}</strong>" in text
    assert said.err.splitlines()[-1] == answer("mine", facts)


@pytest.mark.usefixtures("quick")
def test_several_checkpoints_of_the_digits(
    checkpoints: Path, tmp_path: Path, digits: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = replace(digits, judge=take_subset(digits.judge, "80"), test=take_subset(digits.test, "80"))
    monkeypatch.setattr(module, "load_data", lambda *_: few)
    monkeypatch.setattr("training.quality_page.CLASSIFIER", 0.0)  # which one epoch does not reach
    folders = {name: checkpoints / name for name in ("dit", "unet")}
    verdicts = evaluate_checkpoints(folders, tmp_path / "page.html", Request(images=40, judges=tmp_path / "judges"))
    raw = json.loads((tmp_path / "page.json").read_text())
    facts = raw["checkpoints"]
    assert verdicts == [(verdict(facts[name])[0], answer(name, facts[name])) for name in ("dit", "unet")]
    assert verdicts[1][0] == "not good"
    assert {facts["judge_saw_training"] for facts in raw["checkpoints"].values()} == {False}
    assert raw["checkpoints"]["unet"]["same_data"] is None
    assert raw["checkpoints"]["dit"]["figures"]["accuracy"]["value"] < 0.6


def test_other_pictures_are_noticed(trained: Path, tmp_path: Path) -> None:
    config, request = load_checkpoint(trained)[1], Request(data_path=tmp_path / "pets")
    facts = module.facts_of(config, data_of("mine", config, request), request)
    assert facts["same_data"] is True
    (tmp_path / "pets" / "cat" / "0.png").unlink()
    assert module.facts_of(config, data_of("mine", config, request), request)["same_data"] is False


def test_the_subset_of_the_run_counts_as_trained_on(checkpoints: Path) -> None:
    config = load_checkpoint(checkpoints / "dit")[1]
    known = replace(config, training={"recipe": {"data": "digits", "subset": "100"}})
    assert len(data_of("dit", known, Request()).train) == 100
    unknown = replace(config, training={"recipe": "my own"})
    assert len(data_of("dit", unknown, Request()).train) == 3000


def test_a_model_of_the_digits_is_measured_with_a_folder(checkpoints: Path, tmp_path: Path) -> None:
    config = load_checkpoint(checkpoints / "dit")[1]
    own = replace(config, training={"recipe": {"data": "digits", "subset": "100"}, "train_sha256": "0" * 64})
    written = write_pictures(tmp_path / "digits", {str(digit): 20 for digit in range(10)})
    request = Request("folder", written)
    data = data_of("dit", own, request)
    assert [len(part) for part in (data.train, data.judge, data.test)] == [160, 160, 40]
    facts = module.facts_of(own, data, request)
    assert (facts["same_data"], facts["data"], facts["data_path"]) == (False, "folder", str(written))
    facts = module.facts_of(own, data, Request(data_path=written))
    assert (facts["data"], facts["data_path"]) == ("digits", None)  # which are read from no path


def test_a_page_can_name_a_path_that_is_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "page", lambda *_: "pets\udcff")
    module.write(tmp_path / "page.html", {}, {})
    assert (tmp_path / "page.html").read_text() == "pets\\udcff"


@pytest.mark.parametrize(
    ("changes", "request_", "error", "message"),
    [
        ({"class_names": ["cat", "dog"]}, {}, CheckpointError, "mine has the classes .*'cat', 'dog'.*, the data"),
        ({"shape": (3, 8, 16)}, {}, CheckpointError, "mine draws images of 16x8 pixels, and data are square"),
        ({}, {"data": "folder"}, DataError, "data folder needs a path"),
        ({}, {"images": 19}, ValueError, "images must be at least 20, two a class, got 19"),
        ({}, {"sampler": "heun"}, ValueError, "unknown sampler 'heun'"),
        ({}, {"steps": 0}, ValueError, "steps must lie in 1..1000, got 0"),
        ({}, {"threads": 0}, ValueError, "threads must lie in 1..1024, got 0"),
    ],
    ids=["classes", "shape", "path", "images", "sampler", "steps", "threads"],
)
def test_what_cannot_be_evaluated_is_refused_at_once(
    changes: dict, request_: dict, error: type, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "load_judges", lambda *_: pytest.fail("too late"))
    values = {"arguments": TINY["dit"], "class_names": [str(i) for i in range(10)]}
    folder = write_checkpoint(tmp_path / "mine", "dit", **(values | changes))
    with pytest.raises(error, match=message):
        evaluate_checkpoints({"mine": folder}, tmp_path / "page.html", Request(**request_))
    assert not (tmp_path / "page.html").exists()


def test_a_page_that_has_no_place_is_refused_before_anything_is_measured(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "step_times", lambda *_: pytest.fail("too late"))
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        evaluate_checkpoints({"dit": checkpoints / "dit"}, tmp_path / "file" / "page.html", Request())


def recipe(**values: Any) -> ModelConfig:
    """Of a checkpoint that a run with these options made."""
    return ModelConfig("dit", {}, training={"recipe": values})


def test_checkpoints_of_different_data_are_refused(tmp_path: Path) -> None:
    configs = {"dit": ModelConfig("dit", {}), "old": recipe(data="folder"), "cifar": recipe(data="cifar10")}
    configs |= {"more": recipe(data="folder", hold_out=0.2), "part": recipe(data="digits", subset="100")}
    for first, other, words in (
        ("old", "dit", r"but old with folder \(hold_out 0.0\) and dit with digits: evaluate them one by one"),
        ("cifar", "more", r"but cifar with cifar10 and more with folder \(hold_out 0\.2\)"),
        ("more", "old", r"more with folder \(hold_out 0\.2\) and old with folder \(hold_out 0\.0\)"),
    ):
        with pytest.raises(ValueError, match=words):
            cases_of({name: configs[name] for name in (first, other)}, Request(data_path=tmp_path))
    assert cases_of({name: configs[name] for name in ("dit", "part")}, Request()).keys() == {"dit", "part"}
    with pytest.raises(DataError, match="^more was trained on a folder of pictures: name it with --data-path, to"):
        cases_of({"more": configs["more"]}, Request())
    with pytest.raises(DataError, match="^cifar was trained on cifar10: name it with --data-path, to"):
        cases_of({"cifar": configs["cifar"]}, Request())
    with pytest.raises(DataError, match=r"lacks batches\.meta.* \(cifar is measured with cifar10\)"):
        cases_of({"cifar": configs["cifar"]}, Request(data_path=tmp_path))
    with pytest.raises(DataError, match=r"no sub-folders.* \(dit is measured with folder\)"):
        cases_of({name: configs[name] for name in ("dit", "cifar", "more")}, Request("folder", tmp_path))


def test_a_folder_needs_held_out_pictures(tmp_path: Path, tiny_config: Config) -> None:
    pets = write_pictures(tmp_path / "pets", {"cat": 10, "dog": 20})
    run: dict[str, Any] = {"data": "folder", "data_path": pets, "steps": 1}
    few = (
        r"2, 4\]: 20 pictures of a class give 4 with the default of hold_out, 0.2; or train mine with a larger --h"
    )
    for share, message in ((0.0, "nothing is held out of .*pets: train mine with --hold-out 0.2"), (0.2, few)):
        config = load_checkpoint(train(tiny_config(**run, hold_out=share, out=tmp_path / f"{share}")))[1]
        with pytest.raises(DataError, match=message):
            data_of("mine", config, Request(data_path=pets))
