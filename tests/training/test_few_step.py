"""Few-step tuning: what is drawn, where a jump should lead, and that a run learns it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.checkpoint import CheckpointError, ModelConfig, build_model, load_checkpoint
from models.samplers import Guidance, sample
from training.config import TrainConfig, recipe_of
from training.few_step import (
    GUIDANCE_RANGE,
    TEACHER_STEPS,
    Jumps,
    draw_jumps,
    few_step_loss,
    guided,
    jump,
    where_to,
)
from training.report import generate, sampling_of
from training.train import train

Config = Callable[..., TrainConfig]
SHAPE = (2, 1, 4, 4)


def test_draws_lie_where_they_should() -> None:
    t, s, r, w = draw_jumps(400, torch.Generator().manual_seed(0))
    jumps = r < t
    assert int((~jumps).sum()) == 100
    assert 0 < int((~jumps[:200]).sum()) < 100  # each of two processes gets some of both
    assert ((t > 0) & (t <= 1)).all()
    assert (t == 1).any()  # where sampling starts
    assert (s[jumps] >= 0).all()
    torch.testing.assert_close((t - s)[s > 0], torch.full_like(t, 1 / TEACHER_STEPS)[s > 0])
    assert (r <= s)[jumps].all()
    assert 0.3 < (r[jumps] == 0).double().mean() < 0.7
    assert w.min() >= GUIDANCE_RANGE[0]
    assert w.max() <= GUIDANCE_RANGE[1]


class Pixel(nn.Module):
    """Every pixel of its one image is the label over ten; that of the null class is 0.5."""

    num_classes = 3

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, ...]] = []

    def forward(self, x: Tensor, t: Tensor, y: Tensor, *others: Tensor) -> Tensor:
        self.seen.append((t, *others))
        pixel = torch.where(y == self.num_classes, 0.5, y / 10)
        return pixel[:, None, None, None].expand(x.shape)


def test_guidance_of_the_teacher_costs_a_row_where_it_is_asked_for() -> None:
    teacher, y = Pixel(), torch.tensor([1, 2])
    denoised = guided(teacher, torch.zeros(SHAPE), torch.tensor([0.5, 0.5]), y, torch.tensor([1.0, 3.0]), null=3)
    assert denoised[0, 0, 0, 0] == pytest.approx(0.1)
    assert denoised[1, 0, 0, 0] == pytest.approx(0.5 + 3 * (0.2 - 0.5))
    assert [len(t) for t, *_ in teacher.seen] == [2, 1]


def test_one_jump_should_lead_where_the_step_and_the_jump_behind_it_lead() -> None:
    student, x, y = Pixel(), torch.randn(SHAPE), torch.tensor([1, 2])
    t, s, r, w = (torch.tensor(pair) for pair in ((0.8, 0.6), (0.7, 0.5), (0.2, 0.6), (1.5, 2.0)))
    denoised = torch.full(SHAPE, 0.3)
    goal = where_to(student, x, denoised, y, (t, s, r, w))
    on_path = jump(x, denoised, t, s)
    end = jump(on_path, torch.full(SHAPE, 0.1), s, r)
    torch.testing.assert_close(jump(x, goal, t, r)[0], end[0])
    torch.testing.assert_close(goal[1], denoised[1])  # r = t: the guided denoiser itself
    torch.testing.assert_close(student.seen[0], (s * 1000, r * 1000, w))


def test_a_network_that_jumps_rightly_has_no_loss() -> None:
    """All of its paths lead straight to one image, so every jump from anywhere does."""
    model = Pixel()
    x0, y = torch.full(SHAPE, 0.1), torch.tensor([1, 1])
    jumps = Jumps(*(torch.tensor(pair) for pair in ((0.8, 0.6), (0.7, 0.5), (0.0, 0.6), (1.0, 1.0))))
    batch = x0, y, torch.randn(SHAPE)
    assert few_step_loss(model, model, batch, jumps, (0.0, 1.0)).item() == pytest.approx(0, abs=1e-6)
    steered = jumps._replace(w=torch.tensor([2.0, 2.0]))
    assert few_step_loss(model, model, batch, steered, (0.0, 1.0)).item() > 0.01


def test_the_path_is_guided_in_its_interval_and_the_null_class_never() -> None:
    """So is the denoiser itself, r = t, at every time."""
    t, s, r, w = (
        torch.tensor(values) for values in ((0.9, 0.5, 0.9), (0.8, 0.4, 0.8), (0.0, 0.0, 0.9), (2.0,) * 3)
    )
    batch = torch.zeros(3, 1, 2, 2), torch.tensor([1, 1, 1]), torch.zeros(3, 1, 2, 2)
    teacher, student = Pixel(), Pixel()
    few_step_loss(student, teacher, batch, Jumps(t, s, r, w), (0.3, 0.8))
    torch.testing.assert_close(teacher.seen[1][0], torch.tensor([500.0, 900.0]))  # the second rows
    few_step_loss(student, teacher, (batch[0], torch.full((3,), 3), batch[2]), Jumps(t, s, r, w), (0.3, 0.8))
    assert len(teacher.seen) == 3  # no second rows for the null class
    assert torch.equal(student.seen[-1][2], torch.ones(3))


def test_what_the_teacher_sees_is_an_image() -> None:
    teacher = Pixel()
    denoised = guided(
        teacher, torch.zeros(SHAPE), torch.ones(2), torch.tensor([2, 2]), torch.full((2,), 9.0), null=3
    )
    assert denoised.min() == -1  # 0.5 + 9 (0.2 - 0.5), clamped


def test_each_step_draws_jumps_of_its_own(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Jumps] = []

    def noted(count: int, generator: torch.Generator) -> Jumps:
        drawn.append(draw_jumps(count, generator))
        return drawn[-1]

    source = train(tiny_config(steps=1, out=tmp_path / "first"))
    monkeypatch.setattr("training.train.draw_jumps", noted)
    tuned(tiny_config, source, tmp_path / "few", steps=3)
    assert len({tuple(jumps.w.tolist()) for jumps in drawn}) == 3


def tuned(tiny_config: Config, source: Path, out: Path, **changes: Any) -> Path:
    arguments = load_checkpoint(source)[1].arguments | {"few_step": True}
    values = {"init_from": source, "few_step": True, "arguments": arguments, "out": out, "steps": 2} | changes
    return train(tiny_config(**values))


@pytest.mark.parametrize("model", ["dit", "unet"])
def test_a_run_tunes_a_checkpoint(tiny_config: Config, tmp_path: Path, model: str) -> None:
    source = train(tiny_config(model, steps=2, out=tmp_path / "first"))
    folder = tuned(lambda **values: tiny_config(model, **values), source, tmp_path / "few")
    network, config = load_checkpoint(folder)
    assert config.guidance_range == GUIDANCE_RANGE
    assert [config.named_sampling[name]["steps"] for name in ("draft", "default", "best")] == [1, 2, 10]
    assert config.named_sampling["best"]["sampler"] == "dpmpp_2m"
    assert config.training["recipe"]["few_step"] is True
    assert dict(network.named_parameters())["condition.jump"].abs().max() > 0
    images = generate(network, config, torch.tensor([0, 1]), torch.tensor([1, 2]))
    assert images.isfinite().all()
    again = tuned(lambda **values: tiny_config(model, **values), folder, tmp_path / "more")
    assert load_checkpoint(again)[1].guidance_range == GUIDANCE_RANGE


def test_the_start_of_a_tuning_is_the_checkpoint(tiny_config: Config, tmp_path: Path) -> None:
    """New weights are zeros, so r and w change nothing yet, and a plain call gives the bits of before."""
    source = train(tiny_config(steps=2, out=tmp_path / "first"))
    plain, known = load_checkpoint(source)
    config = ModelConfig(
        "dit", known.arguments | {"few_step": True}, class_names=known.class_names, guidance_range=(1.0, 3.0)
    )
    network = build_model(config)
    network.load_state_dict(plain.state_dict(), strict=False)
    x, t, y = torch.randn(3, *config.image_shape), torch.tensor([900.0, 500.0, 20.0]), torch.tensor([0, 1, 2])
    with torch.no_grad():
        expected = plain(x, t, y)
        assert torch.equal(network(x, t, y), expected)
        assert torch.equal(network(x, t, y, torch.zeros(3), torch.full((3,), 2.0)), expected)
    with pytest.raises(ValueError, match="takes no r and no w"):
        plain(x, t, y, torch.zeros(3))


def test_what_cannot_be_tuned_is_refused(tiny_config: Config, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name their folder by init_from"):
        tiny_config(few_step=True)
    with pytest.raises(ValueError, match="needs schedule flow and prediction x0"):
        tiny_config(few_step=True, init_from=tmp_path, prediction="v")
    with pytest.raises(CheckpointError):
        recipe_of({"model": "dit", "few_step": True, "init_from": tmp_path})
    with pytest.raises(ValueError, match="guidance_range needs few_step"):
        ModelConfig("dit", {}, guidance_range=(1.0, 3.0))
    with pytest.raises(ValueError, match="two numbers around 1"):
        ModelConfig("dit", {"few_step": True}, guidance_range=(2.0, 3.0))


def test_guidance_of_a_tuned_network_is_its_input() -> None:
    """Inside the trained range one row carries w; beyond it two rows are combined."""

    class Scale(nn.Module):
        """Says w for a class and 0 for the null class."""

        num_classes = 1

        def forward(self, x: Tensor, t: Tensor, y: Tensor, r: Tensor, w: Tensor) -> Tensor:
            return torch.where(y == 1, 0.0, w / 10)[:, None, None, None].expand(x.shape)

    config = ModelConfig("mine", {}, class_names=["a"], guidance_range=(1.0, 3.0), shape=(1, 2, 2))
    label, seed = torch.tensor([0]), torch.tensor([0])
    for scale, expected in ((1.0, 0.1), (2.0, 0.2), (5.0, 0.5)):
        how = Guidance(scale, trained=config.guidance_range)
        image = sample(Scale(), config.table("ddim", 3), label, seed, (1, 2, 2), guidance=how)
        torch.testing.assert_close(image, torch.full((1, 1, 2, 2), expected))
    assert sampling_of(config).guidance.trained == (1.0, 3.0)
