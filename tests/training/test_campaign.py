"""A campaign with tiny networks and judges of one epoch; see test_measure.py for the figures."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from models.checkpoint import load_checkpoint
from run import build_parser, main
from tests.training.conftest import TINY
from tests.training.pictures import write_pictures
from tests.waiting import wait_until
from training import judge
from training.comparison import campaign as module
from training.comparison import probe, timing
from training.comparison.campaign import PASSES, Campaign
from training.comparison.campaign_list import ListError, choose, read_list
from training.comparison.effects import d2
from training.comparison.results import append_result, held, read_results
from training.data import Data, DataError, take_subset
from training.info import model_info
from training.options import work_folder
from training.state import STATE
from training.train import Trainer, train

ROOT = Path(__file__).resolve().parents[2]
LIST = """
[defaults]
batch_size = 8
decay = 0.0
measure_at = [16, 32]
samples = [20, 20]
evaluations = 1
loss_images = 20
autocast = false
[network.dit]
model = "dit"
arguments = { hidden_dim = 32, depth = 1, num_heads = 2 }
[network.unet]
model = "unet"
arguments = { base_channels = 8, channel_multipliers = [1, 2], num_res_blocks = 1 }
"""
ONE = '[[group]]\nname = "A"\nnetworks = ["dit"]\nguidance_grid = [2.0]\n'
TWO = '[[group]]\nname = "A"\nnetworks = ["dit"]\nseed = [0, 1]\n'


def written(folder: Path, groups: str) -> Path:
    path = folder / "list.toml"
    path.write_text(LIST + groups)
    return path


@pytest.fixture(scope="session")
def judges(digits: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As load_judge keeps them, but of one epoch."""
    work = tmp_path_factory.mktemp("judges")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge, "EPOCHS", 1)
        Campaign(work / "runs.jsonl", work).judges(digits)
    for card in work.glob("judges/*/judge.json"):
        card.write_text(json.dumps(json.loads(card.read_text()) | {"epochs": judge.EPOCHS}))
    return work / "judges"


@pytest.fixture
def a_campaign(judges: Path, tmp_path: Path, digits: Data, monkeypatch: pytest.MonkeyPatch) -> Campaign:
    """With few held-out digits, because three judges grade all of them at every point."""
    shutil.copytree(judges, tmp_path / "work" / "judges")
    few = replace(digits, test=take_subset(digits.test, "60"))
    monkeypatch.setattr(module, "load_training_data", lambda config: few)
    return Campaign(tmp_path / "runs.jsonl", tmp_path / "work")


def figures(line: dict[str, Any]) -> dict[str, Any]:
    """All but the clock."""
    return {name: value for name, value in line.items() if not name.endswith("seconds")}


def keys(lines: list[dict[str, Any]]) -> list[tuple[str, int, float]]:
    return [(line["run"], line["images_seen"], line["guidance"]) for line in lines]


def test_the_product_of_a_list(tmp_path: Path) -> None:
    groups = '[[group]]\nname = "A"\nlr = [1e-3, 3e-3]\nseed = [0]\nunet.guidance = 2\n'
    groups += (
        '[[group]]\nname = "B"\nnetworks = ["unet"]\nsubset = ["1/2", "2/2"]\nmeasure_at = [80]\nsamples = [30]\n'
    )
    runs = read_list(written(tmp_path, groups))
    assert [run.name for run in runs] == [
        *("A-dit-lr0.001-seed0", "A-unet-lr0.001-seed0", "A-dit-lr0.003-seed0", "A-unet-lr0.003-seed0"),
        *("B-unet-subset1of2", "B-unet-subset2of2"),
    ]
    assert [run.config.steps for run in runs] == [4, 4, 4, 4, 10, 10]
    assert [run.measure.guidance for run in runs] == [1.5, 2, 1.5, 2, 1.5, 1.5]
    assert (runs[3].config.lr, runs[3].config.arguments) == (3e-3, TINY["unet"])
    assert [run.name for run in choose(runs, ["B", "A-dit-lr0.003-seed0"])] == [runs[i].name for i in (2, 4, 5)]
    with pytest.raises(ListError, match="no group or run C"):
        choose(runs, ["A", "C"])


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ("", "name of a group must be letters, digits, dots and dashes, got None"),
        ('name = "A"\nsteps = 3', "group A has no field steps"),
        ('name = "A"\nlearning_rate = 1', "group A has no field learning_rate"),
        ('name = "A"\ndit.rate = 1', "dit of group A has no field rate"),
        ('name = "A"\nnetworks = ["gan"]', "networks of group A must be a list from dit, unet, got"),
        ('name = "A"\nlr = "fast"', "run A-dit: lr cannot be 'fast'"),
        ('name = "A"\nlr = [1e-3, -1]', "run A-dit-lr-1: lr must be positive"),
        ('name = "A"\nmeasure_at = [20]\nsamples = [20]', "measure_at must be multiples of batch_size 8"),
        ('name = "A"\nmeasure_at = [32, 16]', "measure_at must rise"),
        ('name = "A"\nsamples = [20]', "samples must be 2 numbers from 20"),
        ('name = "A"\nsamples = "many"', "samples cannot be 'many'"),
        ('name = "A"\ndecay = 1.0', "decay must be 0 with several measure_at"),
        ('name = "A"\ndata = "folder"', "data folder needs data_path, a hold_out above 0"),
        (
            'name = "A"\ndata = "folder"\ndata_path = "pets"\nhold_out = 0',
            "data folder needs data_path, a hold_out",
        ),
        ('name = "A"\ndata = "moons"', "data must be one of digits, tiles, cifar10, folder"),
        ('name = "A"\nmodel = "gan"', "model must be one of dit, unet"),
        ('name = "A"\nguidance = nan', "guidance and guidance_grid must be finite"),
        ('name = "A"\nsampler = "heun"', "unknown sampler 'heun'"),
        ('name = "A"\ntask = "sing"', "task of group A must be one of train, time, probe, sample, got 'sing'"),
        ('name = "A"\nthreads = 1', "group A has no field threads"),
        ('name = "A"\ntask = "time"\nthreads = 0', "run A-dit: threads must be at least 1, got 0"),
        ('name = "A"\ntask = "probe"\nof = "B"', "of in group A must name a group of trainings above it, got 'B'"),
        ('name = "A"\ntask = "probe"\nseed = [1]', "group A has no field seed"),
        ('name = "A"\ntask = "probe"\nevaluations = [1]', "group A has no field evaluations"),
        ('name = "A"\ntask = "sample"\nof = "B"', "evaluations of group A must be a list of whole numbers"),
        ('name = "A"\n[[group]]\nname = "A"', "more than one run is called A-dit, A-unet"),
        ("name = A", "Invalid value"),
    ],
)
def test_errors_of_a_list_name_the_field(group: str, message: str, tmp_path: Path) -> None:
    path = written(tmp_path, "[[group]]\n" + group)
    with pytest.raises(ListError, match=f"^{path}: .*{message}"):
        read_list(path)


def test_measuring_changes_no_weight(a_campaign: Campaign, tmp_path: Path) -> None:
    (run,) = read_list(written(tmp_path, ONE))
    a_campaign.work_off([run])
    straight = train(replace(run.config, out=tmp_path / "straight"))
    measured, expected = (load_file(folder / STATE) for folder in (a_campaign.work / run.name, straight))
    assert all(measured[name].equal(expected[name]) for name in expected)
    assert load_checkpoint(a_campaign.work / run.name)[1].training["finished_at"] == [2]


def test_a_run_leaves_lines_and_samples(a_campaign: Campaign, tmp_path: Path) -> None:
    (run,) = read_list(written(tmp_path, ONE))
    assert "left: 0.0 hours, and 1 runs of unknown speed" in a_campaign.status([run])
    assert a_campaign.work_off([run]) == "A: 1 of 1 runs done\nnext: nothing\nleft: 0.0 hours"
    lines = read_results(a_campaign.results)
    assert keys(lines) == [("A-dit", 16, 1.5), ("A-dit", 32, 1.5), ("A-dit", 32, 2.0)]
    assert [line["recipe"]["steps"] for line in lines] == [2, 4, 4]
    assert [line["sampling"]["guidance"]["scale"] for line in lines] == [1.5, 1.5, 2]
    assert ["loss" in line for line in lines] == [True, True, False]
    assert lines[1]["train_flop"] == 3 * 32 * lines[1]["flop_per_row"]
    assert {"commit", "machine", "versions", "train_sha256", "parameters"} <= lines[0].keys()
    assert [len(line["judges"]) for line in lines] == [3, 3, 3]
    arrays = np.load(tmp_path / "data" / "A-dit.npz")
    assert (arrays["images"].shape, arrays["images"].dtype) == ((200, 1, 32, 32), np.uint8)
    assert np.bincount(arrays["labels"]).tolist() == [20] * 10
    assert len(set(arrays["seeds"])) == 200
    assert arrays["trajectories"].shape == (5, 6, 1, 32, 32)
    ends = arrays["trajectories"][:, -1].astype(int)
    assert np.abs(ends - arrays["images"][:5]).max() <= 1  # of 255: another batch rounds otherwise


class Kills:
    """Interrupts the process before and after every event, once each."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.calls: Counter[str] = Counter()

    def at(self, *event: Any) -> None:
        if event not in self.seen:
            self.seen.append(event)
            raise KeyboardInterrupt

    def around(self, owner: Any, name: str, label: Callable[..., Any]) -> None:
        inner = getattr(owner, name)

        def killed(*arguments: Any) -> Any:
            self.at(name, "before", label(*arguments))
            self.calls[name] += 1
            answer = inner(*arguments)
            self.at(name, "after", label(*arguments))
            return answer

        setattr(owner, name, killed)


def test_a_kill_anywhere_repeats_no_line(
    a_campaign: Campaign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run,) = read_list(written(tmp_path, ONE))
    a_campaign.work_off([run])
    straight = Campaign(tmp_path / "again" / "runs.jsonl", tmp_path / "again")
    shutil.copytree(a_campaign.work / "judges", straight.work / "judges")
    kills = Kills()
    for owner, name in ((module, "train"), (module, "append_result"), (Campaign, "save")):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # undone at the end
    kills.around(module, "train", lambda config, signals: config.steps)
    kills.around(module, "append_result", lambda path, line: (line["images_seen"], line["guidance"]))
    kills.around(Campaign, "save", lambda *_: 0)
    for _ in range(100):
        try:
            straight.work_off([run])
            break
        except KeyboardInterrupt:
            continue
    assert len(kills.seen) == 2 * (2 + 3 + 1)
    assert kills.calls["append_result"] == 3
    lines, expected = read_results(straight.results), read_results(a_campaign.results)
    assert [figures(line) for line in lines] == [figures(line) for line in expected]
    arrays = [folder / "data" / "A-dit.npz" for folder in (tmp_path, tmp_path / "again")]
    assert arrays[0].read_bytes() == arrays[1].read_bytes()


def test_a_run_that_another_process_holds_is_left_to_it(a_campaign: Campaign, tmp_path: Path) -> None:
    first, second = read_list(written(tmp_path, TWO))
    with held(a_campaign.work / "locks" / first.name):
        assert f"next: {first.name}" in a_campaign.work_off([first, second])
    assert {line["run"] for line in read_results(a_campaign.results)} == {second.name}
    assert a_campaign.take(first)
    assert not a_campaign.take(first)


def start(folder: Path, path: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "run.py", "campaign", "--list", str(path), "--runs", str(folder / "runs.jsonl")]
    command += ["--work", str(folder / "work"), "--threads", "1"]
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(command, cwd=ROOT, env=hidden, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_real_processes_are_killed_and_share_the_rest(judges: Path, tmp_path: Path) -> None:
    shutil.copytree(judges, tmp_path / "work" / "judges")
    path, results = written(tmp_path, TWO), tmp_path / "runs.jsonl"
    killed = start(tmp_path, path)
    wait_until(lambda: len(read_results(results)) == 1)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    pair = [start(tmp_path, path) for _ in range(2)]
    assert [process.wait() for process in pair] == [0, 0]
    expected = [(f"A-dit-seed{seed}", images, 1.5) for seed in (0, 1) for images in (16, 32)]
    assert sorted(keys(read_results(results))) == expected
    assert sorted(p.stem for p in (tmp_path / "data").iterdir()) == ["A-dit-seed0", "A-dit-seed1"]


@pytest.mark.parametrize(
    ("at", "told"), [(1, "stopped after step 2 of A-dit"), (2, "step 3 of 4 is saved")], ids=["last", "inner"]
)
def test_sigterm_stops_in_any_step(
    at: int,
    told: str,
    a_campaign: Campaign,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    step = Trainer.train_step

    def signalled(self: Trainer) -> Any:
        if self.step == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self)

    command = ["campaign", "--list", str(written(tmp_path, ONE)), "--runs", str(a_campaign.results)]
    command += ["--work", str(a_campaign.work), "--threads", "1"]
    monkeypatch.setattr(Trainer, "train_step", signalled)
    assert main(command) == 128 + signal.SIGTERM
    assert told in capsys.readouterr().err
    assert main(command) == 0
    assert "A: 1 of 1 runs done" in capsys.readouterr().out
    assert main([*command, "--status"]) == 0
    assert len(read_results(a_campaign.results)) == 3


def test_choices_are_made_on_other_pictures_than_verdicts(a_campaign: Campaign, tmp_path: Path) -> None:
    both = ONE + "swap_held_out = true\n" + ONE.replace('"A"', '"B"')
    choosing, judging = (module.pictures_of(run) for run in read_list(written(tmp_path, both)))
    assert choosing.test is judging.judge
    assert choosing.judge is judging.test
    assert choosing.train is judging.train


def test_a_run_that_diverges_is_a_result(a_campaign: Campaign, tmp_path: Path) -> None:
    (run,) = read_list(written(tmp_path, ONE + "lr = 1e12\nwarmup = 0\n"))
    a_campaign.work_off([run])
    (line,) = read_results(a_campaign.results)
    assert "training diverged at step" in line["diverged"]
    assert not a_campaign.take(run)


def test_a_group_may_keep_no_samples(a_campaign: Campaign, tmp_path: Path) -> None:
    (run,) = read_list(written(tmp_path, ONE + "gallery = false\n"))
    assert "A: 1 of 1 runs done" in a_campaign.work_off([run])
    assert not a_campaign.gallery(run).exists()


def test_a_list_that_changed_is_refused(a_campaign: Campaign, tmp_path: Path) -> None:
    (run,) = read_list(written(tmp_path, ONE))
    a_campaign.work_off([run])
    (other,) = read_list(written(tmp_path, ONE + "lr = 2e-3\n"))
    with pytest.raises(
        ValueError, match=r"has run A-dit with another recipe: lr was 0.001, now 0.002\. Rename its"
    ):
        a_campaign.take(other)


def test_a_line_cut_short_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    a, c = ({"group": "G", "run": run, "network": "dit"} for run in "AC")
    append_result(path, a)
    with path.open("a") as file:
        file.write('{"run": "B", "ima')
    assert read_results(path) == [a]
    append_result(path, c)
    assert read_results(path) == [a, c]
    path.write_text('{"run"\n{"run": "C"}\n')
    with pytest.raises(ValueError, match=r"runs.jsonl, line 1 is damaged"):
        read_results(path)
    path.write_text('{"run": "A"}\n')
    with pytest.raises(ValueError, match=r"runs.jsonl, line 1 must be an object with group, network, run"):
        read_results(path)


def test_the_list_of_the_digits_compares_equal_networks() -> None:
    runs = read_list(ROOT / "docs" / "comparison" / "digits.toml")
    counts = {"D1-rates": 6, "D1": 10, "D4": 4, "D8": 10, "D5": 10, "D1-evaluations": 10, "D3": 18}
    assert Counter(run.group for run in runs) == counts
    info = {run.network: model_info(run.config.model, run.config.arguments) for run in runs}
    for quantity in ("parameters", "flops"):
        assert max(i[quantity] for i in info.values()) < 1.15 * min(i[quantity] for i in info.values())
    for group, budgets in {"D1": {96_000}, "D4": {96_000}, "D3": {48_000, 96_000}}.items():
        mine = [run for run in runs if run.group == group]
        assert {run.config.steps * run.config.batch_size for run in mine} == budgets
        for subset in {run.config.subset for run in mine}:
            same = [run for run in mine if run.config.subset == subset]
            assert len({(run.config.decay, run.config.data, run.measure.measure_at) for run in same}) == 1


def test_the_list_for_a_gpu_gives_every_width_the_same_budgets() -> None:
    (path,) = {
        build_parser().parse_args(["campaign", "--list", name]).list for name in ("gpu", "docs/comparison/gpu.toml")
    }
    runs = read_list(ROOT / path)
    flop = {run.network: model_info(run.config.model, run.config.arguments)["flops"] for run in runs}
    lines = [
        {"group": "D2", "run": run.name, "network": run.network, "loss": {}, "recipe": run.config.recipe()}
        | {"train_flop": PASSES * flop[run.network] * point.images_seen, "flop_per_row": flop[run.network]}
        for run in runs
        for point in run.points
    ]
    for network in ("dit", "unet"):
        found = d2(lines, network)
        assert list(found) == [1, 2, 3]
        for budget in (budget for budgets in found.values() for budget in budgets):
            assert max(x["train_flop"] for x in budget) < 1.02 * min(x["train_flop"] for x in budget)


def test_tasks_of_a_list(tmp_path: Path) -> None:
    groups = TWO + '[[group]]\nname = "B"\ntask = "probe"\nof = "A"\n'
    groups += '[[group]]\nname = "C"\ntask = "time"\nthreads = 1\nseed = [1]\n'
    *trained, first, second, dit, unet = read_list(written(tmp_path, groups))
    assert [(run.name, run.of) for run in (first, second)] == [(f"B-{run.name}", run) for run in trained]
    assert [run.name for run in (dit, unet)] == ["C-dit-seed1", "C-unet-seed1"]
    assert [run.task for run in (trained[0], first, dit)] == ["train", "probe", "time"]
    assert [run.config.threads for run in (trained[0], dit)] == [None, 1]


def test_a_probe_waits_for_its_run(a_campaign: Campaign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, *_ = runs = read_list(written(tmp_path, ONE + '[[group]]\nname = "B"\ntask = "probe"\nof = "A"\n'))
    monkeypatch.setattr(probe, "PATCHES", (1,))
    monkeypatch.setattr(probe, "IMAGES", 20)
    assert not a_campaign.take(runs[1])
    told = "A: 0 of 1 runs done\nB: 0 of 1 runs done, 1 wait: A-dit is not finished\nnext: A-dit\n"
    assert a_campaign.status(runs).startswith(told)
    assert a_campaign.work_off(runs).startswith("A: 1 of 1 runs done\nB: 1 of 1 runs done\nnext: nothing")
    *_, line = read_results(a_campaign.results)
    assert (line["run"], line["network"], "recipe" in line) == ("B-A-dit", "dit", False)
    assert line["weights_sha256"] == load_checkpoint(a_campaign.work / run.name)[1].sha256
    assert set(line["probe"]["r2"]) == {"optimal", "wiener", "local"}
    arrays = np.load(tmp_path / "data" / "B-A-dit.npz")
    assert (arrays["sensitivity"].shape, arrays["outputs"].shape) == ((8, 32, 32), (8, 10, 1, 32, 32))
    assert not a_campaign.take(runs[1])
    a_campaign.results.write_text("".join(a_campaign.results.read_text().splitlines(True)[:-1]))
    shutil.rmtree(a_campaign.work / run.name)
    assert a_campaign.work_off(runs).startswith("A: 1 of 1 runs done\nB: 1 of 1 runs done")
    *_, again = read_results(a_campaign.results)
    assert (again["run"], again["weights_sha256"]) == (line["run"], line["weights_sha256"])


def test_a_probe_of_a_run_that_diverged_waits_for_ever(a_campaign: Campaign, tmp_path: Path) -> None:
    groups = ONE + 'lr = 1e12\nwarmup = 0\n[[group]]\nname = "B"\ntask = "probe"\nof = "A"\n'
    told = a_campaign.work_off(read_list(written(tmp_path, groups)))
    assert told.startswith("A: 1 of 1 runs done\nB: 0 of 1 runs done, 1 wait: A-dit has diverged\nnext: nothing")


def test_samples_of_a_finished_run_by_evaluations(a_campaign: Campaign, tmp_path: Path) -> None:
    group = '[[group]]\nname = "B"\ntask = "sample"\nof = "A"\nevaluations = '
    assert "B: 1 of 1 runs done" in a_campaign.work_off(read_list(written(tmp_path, ONE + group + "[1, 3]\n")))
    *trained, line = read_results(a_campaign.results)
    assert (line["run"], line["guidance"], list(line["by_evaluations"])) == ("B-A-dit", 1.5, ["1", "3"])
    once, thrice = line["by_evaluations"].values()
    known = next(x for x in trained if (x["images_seen"], x["guidance"]) == (32, 1.5))  # by one evaluation
    assert once == {name: known[name] for name in once}
    assert thrice["sampling"]["steps"] == 3
    assert thrice["judges"] != once["judges"]
    with pytest.raises(ValueError, match=r"evaluations was \[1, 3\], now \[1, 3, 4\]"):
        a_campaign.status(read_list(written(tmp_path, ONE + group + "[1, 3, 4]\n")))
    with pytest.raises(ListError, match=r"steps must lie in 1\.\.1000, got 0"):
        read_list(written(tmp_path, ONE + group + "[0]\n"))


def test_a_timing_is_one_line_of_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    campaign, few = Campaign(tmp_path / "runs.jsonl", tmp_path), partial(timing.time_network, sides=(16,), rounds=1)
    group = '[[group]]\nname = "A"\ntask = "time"\nthreads = 1\nseed = [1]\nnetworks = ["dit"]\n'
    runs = read_list(written(tmp_path, group))
    monkeypatch.setattr(module, "time_network", few)
    monkeypatch.setattr(timing, "LOAD", 2)  # on any machine
    assert campaign.work_off(runs).startswith("A: 1 of 1 runs done")
    (line,) = read_results(campaign.results)
    assert (line["run"], line["settings"]["threads"]) == ("A-dit-seed1", 1)
    assert "1 torch threads" in line["machine"]
    assert set(line["timing"]["step_seconds"]["16"]) == {"1", "2", "4", "8", "16", "32"}
    (other,) = read_list(written(tmp_path, group.replace("threads = 1", "threads = 2")))
    with pytest.raises(ValueError, match=r"another recipe: threads was 1, now 2\. Rename its group"):
        campaign.take(other)


def test_the_list_of_the_tiles_differs_from_that_of_the_digits_in_the_pictures() -> None:
    folder = ROOT / "docs" / "comparison"
    runs, digits = read_list(folder / "tiles.toml"), read_list(folder / "digits.toml")
    assert Counter((run.network, run.config.seed) for run in runs) == {
        (network, seed): 1 for network in ("dit", "unet") for seed in (1, 2, 3, 4, 5)
    }
    others = {run.network: run for run in digits if run.group == "D1"}
    for run in runs:
        same = others[run.network]
        assert run.config == replace(same.config, data="tiles", seed=run.config.seed, lr=run.config.lr)
        assert run.measure.measure_at == same.measure.measure_at


def test_a_folder_of_pictures_can_be_in_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "EPOCHS", 1)
    pets = write_pictures(tmp_path / "pets", {"cat": 20, "dog": 20})
    (run,) = read_list(written(tmp_path, ONE + f'data = "folder"\ndata_path = "{pets}"\n'))
    campaign = Campaign(tmp_path / "runs.jsonl", tmp_path / "work")
    assert "A: 1 of 1 runs done" in campaign.work_off([run])
    first, *_ = read_results(campaign.results)
    assert (first["train_images"], first["budget"], len(first["judges"])) == (32, 32, 3)
    few = write_pictures(tmp_path / "few", {"cat": 20, "dog": 15})
    (other,) = read_list(written(tmp_path, ONE + f'data = "folder"\ndata_path = "{few}"\n'))
    with pytest.raises(
        ValueError, match="has run A-dit with another recipe: the pictures in --data-path have changed"
    ):
        campaign.status([other])
    (run,) = read_list(written(tmp_path, ONE.replace('"A"', '"B"') + f'data = "folder"\ndata_path = "{few}"\n'))
    with pytest.raises(DataError, match=r"4 held-out pictures of every class are needed, there are \[4, 3\]"):
        campaign.take(run)


def test_results_of_ones_own_have_a_folder_of_their_own() -> None:
    def work(*options: str) -> str:
        return str(work_folder(build_parser().parse_args(["campaign", *options])))

    assert work() == "runs/campaign"
    assert work("--runs", "my/comparison/runs.jsonl") == "my/comparison/runs"
    assert work("--runs", "my.jsonl", "--work", "here") == "here"


def test_tiles_are_graded_by_their_rules(tmp_path: Path) -> None:
    (run,) = read_list(written(tmp_path, ONE + 'data = "tiles"\n'))
    campaign = Campaign(tmp_path / "runs.jsonl", tmp_path / "work")
    assert "A: 1 of 1 runs done" in campaign.work_off([run])
    lines = read_results(campaign.results)
    assert keys(lines) == [("A-dit", 16, 1.5), ("A-dit", 32, 1.5), ("A-dit", 32, 2.0)]
    for line in lines:
        assert line["judges"] == []
        rules = ("far", "near", "texture", "coherent", "far_clear", "near_clear")
        assert line["rules"] == {"samples": 20} | dict.fromkeys(rules, 0)  # of noise
        assert line["rules_real"] == {"samples": 1000} | dict.fromkeys(rules, 1)
        assert line["copies"] == 0
    assert not (campaign.work / "judges").exists()
    assert np.load(tmp_path / "data" / "A-dit.npz")["images"].shape == (50, 3, 32, 32)


def test_every_question_can_be_decided() -> None:
    questions = tomllib.loads((ROOT / "docs" / "comparison" / "questions.toml").read_text())["question"]
    fields = ["name", "sentence", "measurement", "metric", "effect", "kind", "margin", "seeds", "beside"]
    for question in questions:
        assert [field for field in question if field != "looks"] == fields
        assert re.fullmatch(r"D\d+", question["measurement"])
        assert question["kind"] in ("better", "not-worse", "equal")
        assert question["margin"] > 0
        assert len(question["seeds"]) >= 3
        assert 0 not in question["seeds"]  # chose the learning rate
    assert len({question["sentence"] for question in questions}) == len(questions) == 9
