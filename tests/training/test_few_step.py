"""Few-step tuning: what is drawn, where a jump should lead, and that a run learns it."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.checkpoint import CheckpointError, ModelConfig, build_model, load_checkpoint
from models.sampling import Guidance, sample
from tests.training.runs import ALONE, Config
from training.config import recipe_of
from training.few_step import GUIDANCE_RANGE, RESTARTS, TEACHER_STEPS, Draws, Tuning, draw
from training.report import generate, sampling_of
from training.train import Trainer, train

SHAPE = (2, 1, 4, 4)


def test_draws_lie_where_they_should() -> None:
    t, r, w, matched, tau, fresh = draw(torch.Size((400, 1, 2, 2)), torch.Generator().manual_seed(0))
    assert fresh.shape == (400, 1, 2, 2)
    denoising = r == t
    assert [int(kind.sum()) for kind in (denoising, matched)] == [100, 100]
    assert [int(kind[:40].sum()) for kind in (denoising, matched)] == [10, 10]  # the kinds take turns
    assert not (denoising & matched).any()
    assert (r[~denoising] == 0).all()
    assert ((t > 0) & (t <= 1)).all()
    from_noise = t[matched] == 1  # where sampling starts; the others go on from there
    assert 0.6 < from_noise.double().mean() < 0.9  # three standard deviations around 0.75
    second = t[matched][~from_noise]
    assert RESTARTS[0] <= second.min()
    assert second.max() <= RESTARTS[1]
    consistent = t[~denoising & ~matched] * TEACHER_STEPS
    assert 0.4 < (consistent == consistent.round()).double().mean() < 0.6
    assert 0.25 < (w[denoising] == 1).double().mean() < 0.55  # three standard deviations around 0.4
    assert (w[~denoising] == 1).double().mean() < 0.01
    assert w.min() >= GUIDANCE_RANGE[0]
    assert w.max() <= GUIDANCE_RANGE[1]
    assert ((tau > 0) & (tau < 1)).all()


class Pixel(nn.Module):
    """Every pixel of its one image is the label over ten, and a shift; that of the null class is 0.5."""

    num_classes = 3

    def __init__(self, shift: float = 0.0) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(shift))
        self.inputs: list[Tensor] = []
        self.seen: list[tuple[Tensor, ...]] = []

    def forward(self, x: Tensor, t: Tensor, y: Tensor, *others: Tensor) -> Tensor:
        self.inputs.append(x)
        self.seen.append((t, *others))
        pixel = torch.where(y == self.num_classes, 0.5, y / 10) + self.shift
        return pixel[:, None, None, None].expand(x.shape)


def tuning(student: nn.Module, teacher: nn.Module, interval: tuple[float, float] = (0.0, 1.0)) -> Tuning:
    return Tuning(student, teacher, interval)


def pair(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def test_guidance_of_the_teacher_costs_a_row_where_it_is_asked_for() -> None:
    teacher, y = Pixel(), torch.tensor([1, 2])
    guided = tuning(Pixel(), teacher).guided
    denoised = guided(torch.zeros(SHAPE), pair(0.5, 0.5), y, pair(1, 3))
    assert denoised[0, 0, 0, 0] == pytest.approx(0.1)
    assert denoised[1, 0, 0, 0] == pytest.approx(0.5 + 3 * (0.2 - 0.5))
    assert [len(t) for t, *_ in teacher.seen] == [2, 1]
    assert guided(torch.zeros(SHAPE), pair(0.5, 0.5), y, pair(9, 9)).min() == -1  # it draws images


def test_the_path_is_guided_in_its_interval_and_the_denoiser_everywhere() -> None:
    teacher = Pixel()
    t, r, w = pair(0.9, 0.5, 0.9), pair(0, 0, 0.9), pair(2, 2, 2)
    tuning(Pixel(), teacher, (0.3, 0.8)).goal(torch.zeros(3, 1, 2, 2), t, r, torch.tensor([1, 1, 1]), w)
    torch.testing.assert_close(teacher.seen[1][0], pair(500, 900))  # the second rows


def test_a_jump_should_end_where_the_next_point_of_the_path_leads() -> None:
    student, x, y = Pixel(), torch.randn(3, 1, 4, 4), torch.tensor([1, 2, 0])
    teacher = Pixel(shift=0.2)
    t, r, w = pair(0.8, 0.6, 1 / TEACHER_STEPS), pair(0, 0.6, 0), pair(1.5, 1, 1)
    goal = tuning(student, teacher, (0, 0)).goal(x, t, r, y, w)
    torch.testing.assert_close(goal[0], torch.full((1, 4, 4), 0.1))  # the student's own image, from further on
    torch.testing.assert_close(goal[1], torch.full((1, 4, 4), 0.4))  # r = t: the denoiser
    torch.testing.assert_close(goal[2], torch.full((1, 4, 4), 0.2))  # the last step ends in the teacher's image
    on_path, (s, r, w) = student.inputs[0], student.seen[0]
    first = pair(0.8 - 1 / TEACHER_STEPS)
    torch.testing.assert_close(on_path[0], first / 0.8 * x[0] + (1 - first / 0.8) * 0.3)
    torch.testing.assert_close(s[:1], 1000 * first)
    assert not r.any()
    assert w[0] == 1.5


def learnt(
    student: Pixel, teacher: Pixel, critic: Pixel, matched: bool, t: tuple[float, float] = (1.0, 0.7)
) -> Tensor:
    """The loss of two images of label 1, whose gradients are in the networks then."""
    both = tuning(student, teacher)
    both.critic = critic
    draws = Draws(
        pair(*t), pair(0, 0), pair(1, 1), torch.tensor([matched, matched]), pair(0.6, 0.4), torch.randn(SHAPE)
    )
    batch = torch.full(SHAPE, 0.1), torch.tensor([1, 1]), torch.randn(SHAPE)
    loss = both(batch, draws)
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize("matched", [False, True])
def test_a_student_that_draws_as_its_teacher_has_no_loss(matched: bool) -> None:
    student = Pixel()
    assert learnt(student, Pixel(), Pixel(), matched) == pytest.approx(0, abs=1e-6)
    assert student.shift.grad is not None
    assert student.shift.grad.abs() < 1e-6


def test_a_second_jump_begins_at_the_students_first_one_with_other_noise() -> None:
    student, critic, eps = Pixel(shift=0.05), Pixel(), torch.randn(3, 1, 4, 4)
    both = tuning(student, Pixel())
    both.critic = critic
    t, matched = pair(1, 0.7, 0.7), torch.tensor([True, True, False])
    draws = Draws(t, pair(0, 0, 0), pair(2, 2, 2), matched, pair(0.6, 0.4, 0.5), torch.randn(3, 1, 4, 4))
    both((torch.full((3, 1, 4, 4), 0.9), torch.tensor([1, 2, 1]), eps), draws)
    torch.testing.assert_close(student.inputs[0], eps[1:2])  # the first jump, from pure noise
    start, jump, w = student.seen[0]
    assert (start.item(), jump.item(), w.item()) == (1000, 0, 2)
    begun = student.inputs[1]
    torch.testing.assert_close(begun[0], eps[0])
    torch.testing.assert_close(begun[1], 0.3 * torch.full((1, 4, 4), 0.25) + 0.7 * eps[0])
    torch.testing.assert_close(begun[2], 0.3 * torch.full((1, 4, 4), 0.9) + 0.7 * eps[2])
    torch.testing.assert_close(critic.seen[0][1], pair(1000, 700))  # which tells the two distributions apart


@pytest.mark.parametrize("wanted", [-0.3, 0.3])
def test_images_move_from_where_the_critic_expects_them_to_where_the_teacher_does(wanted: float) -> None:
    student, critic, teacher = Pixel(), Pixel(shift=0.1), Pixel(shift=0.1 + wanted)
    learnt(student, teacher, critic, matched=True)
    assert student.shift.grad is not None
    assert student.shift.grad.sign() == -math.copysign(1, wanted)
    assert critic.shift.grad is not None
    assert critic.shift.grad > 0  # it goes to where the images are
    assert teacher.shift.grad is None


def test_the_last_step_of_the_path_tells_which_image_is_right() -> None:
    """Before it, jumps need only agree with each other."""
    wrong = Pixel(shift=0.3)
    assert learnt(wrong, Pixel(), Pixel(), matched=False) == pytest.approx(0, abs=1e-6)
    assert learnt(wrong, Pixel(), Pixel(), matched=False, t=(1 / TEACHER_STEPS, 0.7)) > 0.1


def test_denoising_weighs_as_an_error_of_velocity() -> None:
    """The same error of the image counts more where less noise is left."""

    def loss(t: float) -> float:
        both, at = tuning(Pixel(shift=0.001), Pixel()), pair(t, t)
        draws = Draws(at, at, pair(1, 1), torch.tensor([False, False]), at, torch.zeros(SHAPE))
        return both((torch.zeros(SHAPE), torch.tensor([1, 1]), torch.zeros(SHAPE)), draws).item()

    assert loss(0.2) / loss(0.8) == pytest.approx(16, rel=0.05)  # both are small, so they count squared


def test_the_null_class_goes_without_guidance() -> None:
    teacher, student = Pixel(), Pixel()
    zeros, half = torch.zeros(SHAPE), pair(0.5, 0.5)
    draws = Draws(pair(0.5, 1), pair(0.5, 0), pair(2, 2), torch.tensor([False, True]), half, zeros)
    tuning(student, teacher)((zeros, torch.tensor([3, 3]), zeros), draws)
    assert [len(t) for t, *_ in teacher.seen] == [1, 1]  # no second rows
    assert torch.equal(student.seen[0][2], torch.ones(2))


def test_the_teacher_stays_as_it_is(tiny_config: Config, tmp_path: Path) -> None:
    """It is neither trained nor in the state, and the student is not it."""
    source = train(tiny_config(steps=2, out=tmp_path / "first"))
    arguments = tiny_config().arguments | {"few_step": True}
    trainer = Trainer(tiny_config(init_from=source, few_step=True, arguments=arguments, lr=0.1), ALONE)
    assert isinstance(trainer.trained, Tuning)
    before = {name: value.clone() for name, value in load_checkpoint(source)[0].state_dict().items()}
    trainer.train_step()
    torch.testing.assert_close(dict(trainer.trained.teacher.state_dict()), before, rtol=0, atol=0)
    assert trainer.trained.student is trainer.model
    assert {name.split(".")[0] for name in trainer.trained.state_dict()} == {"student", "critic"}
    moved = dict(trainer.model.named_parameters())["condition.label.weight"]
    assert (moved - before["condition.label.weight"]).abs().max() > 0.01


def test_each_step_draws_its_own(tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Draws] = []

    def noted(images: torch.Size, generator: torch.Generator) -> Draws:
        drawn.append(draw(images, generator))
        return drawn[-1]

    source = train(tiny_config(steps=1, out=tmp_path / "first"))
    monkeypatch.setattr("training.train.draw", noted)
    tuned(tiny_config, source, tmp_path / "few", steps=3)
    assert len({tuple(draws.w.tolist()) for draws in drawn}) == 3


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
    source = train(tiny_config(steps=1, out=tmp_path / "first"))
    with pytest.raises(ValueError, match="batch_size must be at least 4 a process"):
        tuned(tiny_config, source, tmp_path / "few", batch_size=3)
    with pytest.raises(CheckpointError, match="config.json does not exist"):
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
