import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from models.checkpoint import CheckpointError, ModelConfig
from tests.checkpoints import write_checkpoint
from training import compare as compare_module
from training import judge as judge_module
from training.checkpoints import find_checkpoints
from training.compare import compare, step_times, why_not_graded
from training.comparison_page import claims, missed, page, verdict
from training.machine import describe_machine
from training.samples import GAP, HEADING, LABELS, MARGIN, TILE, draw_samples


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    """A comparison in which the DiT is twice as fast and the UNet twice as good."""
    distances = {"generated": 9.0, "sample_size": 500, "matched_generated": 8.0, "matched_real": 4.0}
    neighbours = {"generated_mean": 10.1, "held_out_mean": 9.9, "suspicious": 0.004}
    neighbours |= {"generated_first_percentile": 4.5, "held_out_first_percentile": 3.5}
    evaluation = {
        "images": 1000,
        "sampling": {"sampler": "dpmpp_2m", "steps": 10, "guidance": {"scale": 1.5}},
        "judge_accuracy": 0.988,
        "class_accuracy": 0.986,
        "accuracy_by_class": {str(k): 0.9 + k / 100 for k in range(10)},
        "neighbours": neighbours,
    }
    model = {"arguments": {"hidden_dim": 384}, "parameters": 5_460_144, "default_parameters": 21_537_072}
    training = {"images_seen": 512_000, "seconds": 3200.0, "machine": "a machine"}
    dit = model | {"gflop_per_row": 0.418, "training": training, "step_ms": {"1": 10.0, "8": 20.0}}
    dit["evaluation"] = evaluation | {"frechet": distances | {"ratio": 2.0}}
    unet = model | {"gflop_per_row": 1.055, "training": training | {"images_seen": 160_000}}
    unet |= {"step_ms": {"1": 20.0, "8": 80.0}, "evaluation": evaluation | {"frechet": distances | {"ratio": 1.0}}}
    return {"machine": "two cores", "judge": {}, "models": {"dit": dit, "unet": unet}}


def row(text: str, name: str) -> list[str]:
    lines = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
    assert len(lines) == 1, name
    return [cell.strip() for cell in lines[0].strip("|").split("|")][1:]


def test_the_page_states_the_figures(figures: dict[str, Any]) -> None:
    text = page(figures)
    assert row(text, "parameters") == ["5,460,144", "5,460,144"]
    assert row(text, "GFLOP a forward row") == ["0.42", "1.05"]
    assert row(text, "one forward, 8 rows") == ["20.0 ms", "80.0 ms"]
    assert row(text, "training throughput") == ["160 images/s", "50 images/s"]
    assert row(text, "training images seen") == ["512,000", "160,000"]
    assert row(text, "class accuracy") == ["98.6%", "98.6%"]
    assert row(text, "ratio of the two") == ["2.00", "1.00"]
    assert row(text, "nearest training image, mean")[0] == "10.10 (held-out digits 9.90)"
    assert "98.8% of 1,000 real digits" in " ".join(text.split())
    assert "two cores" in text


def test_the_page_says_when_a_run_recorded_nothing(figures: dict[str, Any]) -> None:
    bare = copy.deepcopy(figures)
    bare["models"]["dit"]["training"] = {}
    text = page(bare)
    assert row(text, "training throughput")[0] == "not recorded"
    assert row(text, "training images seen")[0] == "not recorded"


@pytest.mark.parametrize(
    ("model", "accuracy", "ratio", "expected"),
    [
        ("dit", 0.985, 2.5, []),
        ("dit", 0.984, 2.5, ["DiT: class accuracy 98.40 % (the bar is 98.5 %)"]),
        ("unet", 0.985, 2.51, ["UNet: Frechet ratio 2.51 (the bar is 2.5)"]),
        (
            "unet",
            0.5,
            float("nan"),
            ["UNet: class accuracy 50.00 % (the bar is 98.5 %)", "UNet: Frechet ratio nan"],
        ),
    ],
    ids=["on-the-bar", "accuracy", "ratio", "both"],
)
def test_a_missed_bar_is_named(
    model: str, accuracy: float, ratio: float, expected: list[str], figures: dict[str, Any]
) -> None:
    changed = copy.deepcopy(figures)
    evaluation = changed["models"][model]["evaluation"]
    evaluation["class_accuracy"], evaluation["frechet"]["ratio"] = accuracy, ratio
    misses = missed(changed["models"])
    assert [m[: len(e)] for m, e in zip(misses, expected, strict=True)] == expected
    verdicts = [line for line in page(changed).splitlines() if line.startswith("**Verdict**")]
    assert verdicts == [
        f"**Verdict**: {'the bar is missed: ' + '; '.join(misses) if misses else 'both models pass'}."
    ]


def test_every_claim_is_answered_from_the_figures(figures: dict[str, Any]) -> None:
    dit, unet = figures["models"]["dit"], figures["models"]["unet"]
    answers = {claim: (measured, answer) for claim, measured, answer in claims(dit, unet)}
    assert "5.5 M" in answers["DiT has about 4M parameters"][0]
    assert "21.5 M" in answers["DiT has about 4M parameters"][0]
    assert answers["DiT is faster per step"][1] == "seen in this run"
    assert "2.0 times as long at 1 row, 4.0 times at 8 rows" in answers["DiT is faster per step"][0]
    assert answers["DiT scales better with batch size"][1] == "seen in this run"
    assert answers["UNet gives better quality at small scale"][1] == "seen in this run"
    assert answers["UNet needs fewer training images"][1] == "seen in this run"
    swapped = {claim: answer for claim, _, answer in claims(unet, dit)}
    assert swapped["DiT is faster per step"] == "not seen in this run"
    assert swapped["UNet gives better quality at small scale"] == "not seen in this run"
    assert swapped["UNet needs fewer training images"] == "not shown"


@pytest.mark.parametrize(
    ("ratios", "answer"),
    [
        ((1.5,), "seen in this run"),
        ((1.05,), "no clear difference"),
        ((0.95,), "no clear difference"),
        ((0.5,), "not seen in this run"),
        ((1.5, 0.9), "no clear difference"),
    ],
)
def test_a_verdict_needs_a_clear_difference(ratios: tuple[float, ...], answer: str) -> None:
    assert verdict(*ratios) == answer


def test_compare_measures_both_checkpoints(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge_module, "EPOCHS", 1)
    monkeypatch.setattr(compare_module, "REPEATS", 1)
    (checkpoints / "dit" / "loss.csv").write_text("step,loss,lr,seconds\n1,0.5,1e-3,0.1\n2,0.4,1e-3,0.2\n")
    out, folders = tmp_path / "docs" / "comparison.md", find_checkpoints(["dit", "unet"], checkpoints)
    misses = compare(folders, out, images=20, judge_folder=tmp_path / "judge")
    names = {p.name for p in out.parent.iterdir()}
    pictures = {"samples.png", "neighbours-dit.png", "neighbours-unet.png"}
    assert names == {"comparison.md", "comparison.json"} | pictures  # a curve needs both logs
    raw = json.loads((out.parent / "comparison.json").read_text())
    assert raw["judge"]["accuracy"] == raw["models"]["dit"]["evaluation"]["judge_accuracy"]
    assert raw["models"]["dit"]["evaluation"]["images"] == 20
    assert raw["models"]["unet"]["training"]["images_seen"] == 600
    assert set(raw["models"]["unet"]["step_ms"]) == {"1", "8"}
    assert out.read_text() == page(raw)
    assert misses == raw["missed"] == missed(raw["models"])
    assert {miss.split()[0] for miss in misses} == {"DiT:", "UNet:"}  # networks that were never trained

    shutil.copy(checkpoints / "dit" / "loss.csv", checkpoints / "unet" / "loss.csv")
    compare(folders, out, images=20, judge_folder=tmp_path / "judge")
    assert {p.name for p in out.parent.iterdir()} == names | {"loss.png"}


def test_too_few_images_are_refused_before_the_judge_is_trained(checkpoints: Path, tmp_path: Path) -> None:
    folders = find_checkpoints(["dit", "unet"], checkpoints)
    with pytest.raises(ValueError, match="images must be at least 20"):
        compare(folders, tmp_path / "comparison.md", images=5, judge_folder=tmp_path / "judge")
    assert not (tmp_path / "judge").exists()


def test_step_times_count_rows_not_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([9.0] * 4 + [0.001, 0.008, 0.003, 0.010, 0.002, 0.009])
    monkeypatch.setattr(compare_module, "REPEATS", 3)
    monkeypatch.setattr(compare_module, "time_forward", lambda model, shape, rows: next(seconds))
    assert step_times({"dit": (torch.nn.Identity(), (3, 8, 8))}) == {"dit": {"1": 2.0, "8": 9.0}}


def test_samples_stand_side_by_side(checkpoints: Path, tmp_path: Path) -> None:
    both = find_checkpoints(["dit", "unet"], checkpoints)
    out = draw_samples(both, tmp_path / "new" / "samples.png", columns=8, seed=4)
    step, left = TILE + GAP, MARGIN + LABELS
    width = left + 8 * step
    with Image.open(out) as sheet:
        assert sheet.size == (2 * width + MARGIN, 2 * MARGIN + HEADING + 10 * step)
        top = MARGIN + HEADING + 9 * step
        tiles = [sheet.crop((x, top, x + TILE, top + TILE)).tobytes() for x in (left, width + left)]
        heading = sheet.crop((left, MARGIN, left + 100, MARGIN + 26))
    assert tiles[0] != tiles[1]
    assert all(len(set(tile)) > 10 for tile in tiles)  # pictures, not paper
    alone = draw_samples({"dit": both["dit"]}, tmp_path / "alone.png", columns=8, seed=4)
    with Image.open(alone) as sheet:
        assert sheet.crop((left, top, left + TILE, top + TILE)).tobytes() == tiles[0]
    assert len(heading.getcolors() or []) > 2  # ink
    again = draw_samples(both, tmp_path / "again.png", columns=8, seed=4)
    assert again.read_bytes() == out.read_bytes()
    other = draw_samples(both, tmp_path / "other.png", columns=8, seed=5)
    assert other.read_bytes() != out.read_bytes()


@pytest.mark.parametrize("columns", [0, -1])
def test_samples_need_a_column(columns: int, checkpoints: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="columns must be at least 1"):
        draw_samples({"dit": checkpoints / "dit"}, tmp_path / "samples.png", columns=columns)


def test_samples_need_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json does not exist"):
        draw_samples({"dit": tmp_path}, tmp_path / "samples.png")


def test_the_machine_is_described() -> None:
    assert f"{torch.get_num_threads()} torch threads" in describe_machine()
    assert f"torch {torch.__version__}" in describe_machine()


PETS = ["cat", "dog", "yellow house"]


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (ModelConfig("dit", {}), ""),
        (ModelConfig("dit", {}, training={"recipe": {"data": "digits"}}), ""),
        (ModelConfig("dit", {}, training={"recipe": {"data": "folder"}}), "it was trained on folder"),
        (ModelConfig("dit", {}, class_names=PETS), "its classes are not the ten digits"),
        (ModelConfig("dit", {"image_size": 64}), "its images have the shape (3, 64, 64)"),
    ],
    ids=["unknown", "digits", "folder", "classes", "size"],
)
def test_only_models_of_the_digits_are_graded(config: ModelConfig, reason: str) -> None:
    assert why_not_graded(config).startswith(reason)
    assert bool(why_not_graded(config)) is bool(reason)


def test_any_checkpoints_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_module, "REPEATS", 1)
    monkeypatch.setattr(compare_module, "load_judge", lambda *_: pytest.fail("no judge is needed"))
    names = ["first", "second", "third"]
    for name in names:
        write_checkpoint(tmp_path / name, "dit", class_names=PETS, sampling={"steps": 1})
    folders = find_checkpoints([str(tmp_path / "first"), "second", "third"], tmp_path)
    out = tmp_path / "new" / "mine.md"
    assert compare(folders, out) == []
    text = out.read_text()
    assert {p.name for p in out.parent.iterdir()} == {"mine.md", "mine.json", "samples.png"}
    assert "# first, second and third compared" in text
    assert "[mine.json](mine.json)" in text
    assert len(row(text, "parameters")) == 3
    for name in names:
        assert f"{name} is not graded: its classes are not the ten digits" in text
    assert "class accuracy" not in text


def test_a_model_that_cannot_be_graded_stands_beside_one_that_can(figures: dict[str, Any]) -> None:
    changed = copy.deepcopy(figures)
    changed["models"]["mine"] = changed["models"]["unet"] | {"evaluation": None, "not_graded": "it is of pets"}
    text = page(changed)
    assert "mine is not graded: it is of pets." in text
    assert row(text, "class accuracy") == ["98.6%", "98.6%", "not graded"]
    assert len(row(text, "accuracy")) == 10  # one line of the table by class is the head


def test_the_page_in_docs_is_what_the_figures_say() -> None:
    docs = Path(__file__).resolve().parents[2] / "docs"
    assert (docs / "comparison.md").read_text() == page(json.loads((docs / "comparison.json").read_text()))


def test_names_stand_whole_beside_their_panels(tmp_path: Path) -> None:
    folders = {"mine": write_checkpoint(tmp_path / "mine", "dit", class_names=PETS, sampling={"steps": 1})}
    with Image.open(draw_samples(folders, tmp_path / "samples.png", columns=1)) as sheet:
        pixels = sheet.convert("L").load()
        assert pixels is not None
        edge = [pixels[x, y] for x in (0, 1, sheet.width - 2, sheet.width - 1) for y in range(sheet.height)]
    assert set(edge) == {255}
