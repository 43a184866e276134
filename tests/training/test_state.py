from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from training.ema import EMA
from training.state import STATE, StateError, load_state, save_state

RECIPE = {"lr": 0.01, "arguments": {"depth": 2}}
Run = tuple[nn.Module, EMA, torch.optim.Optimizer]


def a_run(width: int = 4, seed: int = 0) -> Run:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(width, 3), nn.Linear(3, 1))
    return model, EMA(model, 0.9), torch.optim.AdamW(model.parameters(), 1e-2)


def advance(run: Run) -> None:
    model, ema, optimizer = run
    model(torch.ones(2, 4)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    ema.update(model, 0)


def test_a_state_is_restored_bit_exactly(tmp_path: Path) -> None:
    saved, restored = a_run(seed=0), a_run(seed=1)
    advance(saved)
    save_state(tmp_path, *saved, step=7, seconds=12.5, recipe=RECIPE)
    assert load_state(tmp_path, *restored, RECIPE) == (7, 12.5)
    for run in (saved, restored):
        advance(run)
    for a, b in zip(saved[:2], restored[:2], strict=True):
        weights = [(m.model if isinstance(m, EMA) else m).state_dict() for m in (a, b)]
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert [p.name for p in tmp_path.iterdir()] == [STATE]


def test_no_state_is_a_fresh_run(tmp_path: Path) -> None:
    assert load_state(tmp_path, *a_run(), RECIPE) == (0, 0.0)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def other_tensors(path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, path)


def no_facts(path: Path) -> None:
    model, ema, _ = a_run()
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    save_file(tensors | {f"ema.{k}": v for k, v in ema.model.state_dict().items()}, path)


@pytest.mark.parametrize("damage", [truncate, empty, other_tensors, no_facts])
def test_a_damaged_state_is_refused(damage: Callable[[Path], None], tmp_path: Path) -> None:
    save_state(tmp_path, *a_run(), step=1, seconds=1.0, recipe=RECIPE)
    damage(tmp_path / STATE)
    with pytest.raises(StateError, match=r"state\.safetensors cannot be resumed: .*Choose another --out"):
        load_state(tmp_path, *a_run(), RECIPE)


def test_a_state_of_another_model_is_refused(tmp_path: Path) -> None:
    save_state(tmp_path, *a_run(), step=1, seconds=1.0, recipe=RECIPE)
    with pytest.raises(StateError, match="size mismatch"):
        load_state(tmp_path, *a_run(width=5), RECIPE)


@pytest.mark.parametrize(
    ("now", "difference"),
    [
        ({"lr": 0.02, "arguments": {}}, "lr was 0.01, now 0.02"),  # the one that stands first
        ({"lr": 0.01, "arguments": {"depth": 3}}, r'arguments was {"depth": 2}, now {"depth": 3}'),
        ({"lr": 0.01, "arguments": {"depth": 2}, "momentum": 0.9}, "momentum was not recorded, now 0.9"),
        ({"lr": 0.01}, r'arguments was {"depth": 2}, now unknown'),
    ],
    ids=["first", "nested", "new", "gone"],
)
def test_a_state_of_another_recipe_is_refused(now: dict, difference: str, tmp_path: Path) -> None:
    save_state(tmp_path, *a_run(), step=1, seconds=1.0, recipe=RECIPE)
    fresh = a_run(seed=1)
    before = {name: tensor.clone() for name, tensor in fresh[0].state_dict().items()}
    with pytest.raises(StateError, match=f"belongs to another run: {difference}. Choose another --out, or delete"):
        load_state(tmp_path, *fresh, now)
    assert all(torch.equal(tensor, before[name]) for name, tensor in fresh[0].state_dict().items())


def test_a_recipe_may_be_written_in_another_way(tmp_path: Path) -> None:
    written = {"arguments": {"channel_multipliers": (1, 2), "base_channels": 8}}
    save_state(tmp_path, *a_run(), step=1, seconds=1.0, recipe=written)
    same = {"arguments": {"base_channels": 8, "channel_multipliers": [1, 2]}}
    assert load_state(tmp_path, *a_run(), same)[0] == 1
