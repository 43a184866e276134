"""What is timed, not how fast it is; test_campaign.py has a timing in a process of its own."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.conftest import TINY
from training.comparison import timing
from training.comparison.timing import Load, cpu_seconds, in_turns, measure, settings, time_network
from training.config import TrainConfig


@pytest.fixture(autouse=True)
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "TURN", 1e-9)
    monkeypatch.setattr(timing, "ROWS", (1, 8))


def measured(model: str, **changes: Any) -> dict[str, Any]:
    config = TrainConfig(model=model, arguments=TINY[model], batch_size=8, autocast=False, threads=1, **changes)
    found = measure(config, (16, 32), 2)
    assert found["settings"] == settings(config)
    return found["timing"]


def test_a_transformer_is_timed_with_its_attention_alone() -> None:
    found = measured("dit")
    assert {side: set(seconds) for side, seconds in found["step_seconds"].items()} == dict.fromkeys(
        ("16", "32"), {"1", "8"}
    )
    assert set(found["attention_seconds"]) == {"16", "64"}
    width = TINY["dit"]["hidden_dim"]
    assert found["attention_flop"] == {str(n): 4 * n * n * width for n in (16, 64)}
    # four times as many pixels, but the condition is counted once
    assert found["step_flop"]["32"] > 4 * found["step_flop"]["16"] - 1e6
    seconds = [s for part in found["step_seconds"].values() for s in part.values()]
    assert min(*seconds, *found["attention_seconds"].values(), found["train_image_seconds"]) > 0


def test_flops_of_a_convolutional_network_are_linear() -> None:
    found = measured("unet")
    assert not {"attention_seconds", "attention_flop"} & set(found)
    small, large = found["step_flop"].values()
    condition = (4 * small - large) / 3  # 256 -> 32 -> 32, then the FiLM parameters of all blocks
    assert 0 < condition < 0.02 * small


def test_all_sizes_take_turns_after_a_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "WARM_UP", 2)
    called: list[str] = []
    seconds, _ = in_turns({name: lambda name=name: called.append(name) for name in "ab"}, 3)
    assert "".join(called) == "aabb" + "ab" * 3
    assert set(seconds) == {"a", "b"}


def test_seconds_are_the_median(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([1.0, 5.0, 2.0])
    monkeypatch.setattr(timing, "run", lambda call: call())
    monkeypatch.setattr(timing, "WARM_UP", 0)
    assert in_turns({"a": lambda: next(clock)}, 3)[0] == {"a": 2.0}


def test_a_timing_ends_with_its_campaign(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dead:
        def is_alive(self) -> bool:
            return False

    monkeypatch.setattr(multiprocessing, "parent_process", Dead)
    with pytest.raises(SystemExit, match="the campaign has ended"):
        in_turns({"a": lambda: None}, 1)


@pytest.mark.parametrize(("load", "refused"), [(0.12, True), (0.1, False), (0.0, False), (None, False)])
def test_a_timing_beside_other_work_is_refused(
    load: float | None, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"timing": {"load": load}}
    monkeypatch.setattr(timing, "ProcessPoolExecutor", lambda count, _: ThreadPoolExecutor(count))
    monkeypatch.setattr(timing, "measure", lambda *_: found)
    if refused:
        with pytest.raises(ValueError, match=r"used 12% of the cores during the timing, at most 10% is allowed"):
            time_network(TrainConfig())
    else:
        assert time_network(TrainConfig()) is found


def reading(*values: Any) -> Callable[[], Any]:
    return iter(values).__next__


@pytest.mark.parametrize(
    ("before", "after", "share"),
    [
        ((10.0, 100.0, 3.0), (15.0, 120.0, 8.0), 0.0),  # all of it is the process's own
        ((10.0, 100.0, 3.0), (19.0, 120.0, 8.0), 0.2),
        ((10.0, 100.0, 3.0), (14.0, 120.0, 8.0), 0.0),  # rounded to ticks
        (None, None, None),
    ],
)
def test_the_load_is_what_others_used(
    before: Any, after: Any, share: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "cpu_seconds", reading(before, after))
    assert Load().share() == share


def test_the_table_of_the_system_is_read(tmp_path: Path) -> None:
    table = tmp_path / "stat"
    assert cpu_seconds(table) is None
    table.write_text("cpu  100 200 300 400 500 60 70 80 7 7\ncpu0 1 1 1 1\n")
    read = cpu_seconds(table)
    assert read is not None
    tick = timing.os.sysconf("SC_CLK_TCK")
    assert read[:2] == ((100 + 200 + 300 + 60 + 70 + 80) / tick, 1710 / tick)
    assert read[2] >= 0


def test_a_timing_leaves_gradients_to_the_training() -> None:
    config = TrainConfig(model="dit", arguments=TINY["dit"])
    known = timing.sized(config, 16)
    model = timing.build_model(known)
    output = timing.forward_call(model, known, 2)()
    assert isinstance(output, torch.Tensor)
    assert (output.shape, output.requires_grad) == ((2, 3, 16, 16), False)
