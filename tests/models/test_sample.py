"""The plain loop: guidance, its interval, noise by request, and images that do not depend on each other."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kernels.philox import normal
from models.samplers import build_table
from models.sampling import Further, Guidance, Known, first_noise, sample, step_coefficients
from models.schedule import NoiseSchedule, Prediction
from tests.models.gaussian import Gaussian, run_table

FLOW = NoiseSchedule("flow")
SHAPE = (2, 3, 3)  # C, H, W
MEANS = torch.tensor([-0.6, 0.1, 0.7, 0.0])  # of three classes and the null class
STD = 0.4


class ClassGaussian(nn.Module):
    """The exact x0 prediction for pixels N(mean of the class, 0.4^2) on the flow; remembers what it was asked."""

    num_classes = 3

    def __init__(self, null_label: int = 3):
        super().__init__()
        self.null_label = null_label
        self.calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        self.calls.append((x.clone(), t.clone(), y.clone()))
        u = (t / 1000)[:, None, None, None]
        mean = MEANS[torch.where(y == self.null_label, 3, y)][:, None, None, None]
        variance = (1 - u) ** 2 * STD**2 + u**2
        return mean + (1 - u) * STD**2 / variance * (x - (1 - u) * mean)

    @property
    def rows(self) -> list[int]:
        """Evaluations of each step."""
        return [len(y) for _, _, y in self.calls]


@dataclass(frozen=True)
class Mixture:
    """What guidance asks of the two classes, said by one model: it needs no unconditional row."""

    model: ClassGaussian
    guidance: Guidance
    num_classes = 3

    def __call__(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        w = self.guidance.scale if self.guidance.low <= float(t[0]) / 1000 <= self.guidance.high else 1.0
        return (1 - w) * self.model(x, t, torch.full_like(y, 3)) + w * self.model(x, t, y)


LABELS, SEEDS = torch.tensor([2, 0, 1, 2]), torch.tensor([11, 12, 2**52 + 1, 14])
TABLE = build_table(FLOW, Prediction.X0, "ddpm", 10, clamp=False)
UNGUIDED = Guidance()


def images(model: nn.Module, guidance: Guidance = UNGUIDED, **options: Any) -> Tensor:
    return sample(model, TABLE, LABELS, SEEDS, SHAPE, guidance=guidance, **options)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpmpp_2m", "dpmpp_2m_sde", "euler", "ab2"])
@pytest.mark.parametrize("clamp", [False, True], ids=["free", "clamped"])
def test_every_state_equals_the_table_in_float64(sampler: str, clamp: bool) -> None:
    """Step 0 of a request's noise is its latent, step k + 1 belongs to update k."""
    table = build_table(FLOW, Prediction.X0, sampler, 10, clamp=clamp)
    model = ClassGaussian()
    last = sample(model, table, LABELS, SEEDS, SHAPE)
    states = torch.stack([x for x, _, _ in model.calls] + [last]).double()  # [steps + 1, n, C, H, W]
    for i, (label, seed) in enumerate(zip(LABELS.tolist(), SEEDS.tolist(), strict=True)):
        z = normal(torch.tensor([seed] * 11), torch.arange(11), 18).double().numpy()
        data = Gaussian(np.full(18, float(MEANS[label])), np.full(18, STD))
        expected = run_table(table, FLOW, Prediction.X0, data.denoise, z[0], z[1:])
        np.testing.assert_array_equal(states[0, i].flatten().numpy(), z[0])
        # float32 state and coefficients over ten steps of ten operations on numbers up to 4
        np.testing.assert_allclose(states[1:, i].flatten(1).numpy(), expected, rtol=0, atol=4 * 100 * 2.0**-24)


def test_timesteps_are_those_of_the_table() -> None:
    model = ClassGaussian()
    images(model)
    assert [t.tolist() for _, t, _ in model.calls] == [[float(np.float32(t))] * 4 for t in TABLE.rows[:, 0]]


def test_result_is_float32_without_gradients_whatever_the_network_returns() -> None:
    class Half(ClassGaussian):
        def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
            return super().forward(x, t, y).requires_grad_().half()

    out = images(Half())
    assert out.dtype == torch.float32
    assert not out.requires_grad


def test_an_image_depends_on_its_label_and_seed_alone() -> None:
    guidance = Guidance(2.5, 0.2, 0.8)
    together = images(ClassGaussian(), guidance)
    for i in range(4):
        alone = sample(ClassGaussian(), TABLE, LABELS[i : i + 1], SEEDS[i : i + 1], SHAPE, guidance=guidance)
        assert torch.equal(alone[0], together[i])
    order = torch.tensor([2, 0, 3, 1])
    shuffled = sample(ClassGaussian(), TABLE, LABELS[order], SEEDS[order], SHAPE, guidance=guidance)
    assert torch.equal(shuffled, together[order])
    assert not torch.equal(together[0], together[3])  # same class, other seed


def test_scale_one_is_the_conditional_model() -> None:
    model = ClassGaussian()
    images(model, Guidance(1.0))
    assert model.rows == [4] * 10
    assert all(torch.equal(y, LABELS) for _, _, y in model.calls)


def test_scale_zero_is_the_unconditional_model() -> None:
    model = ClassGaussian()
    out = images(model, Guidance(0.0))
    assert model.rows == [8] * 10
    unconditional = sample(ClassGaussian(), TABLE, torch.full_like(LABELS, 3), SEEDS, SHAPE)
    assert torch.equal(out, unconditional)


def test_guided_rows_are_the_images_twice_under_their_labels_and_under_null() -> None:
    model = ClassGaussian()
    images(model, Guidance(3.0))
    for x, t, y in model.calls:
        assert y.tolist() == [*LABELS.tolist(), 3, 3, 3, 3]
        assert torch.equal(x[:4], x[4:])
        assert len(set(t.tolist())) == 1


@pytest.mark.parametrize("guidance", [Guidance(3.0), Guidance(-1.0), Guidance(2.0, 0.25, 0.75)], ids=str)
def test_guidance_is_the_weighted_difference(guidance: Guidance) -> None:
    expected = sample(Mixture(ClassGaussian(), guidance), TABLE, LABELS, SEEDS, SHAPE)  # pyright: ignore[reportArgumentType]
    # float32 over ten steps, with the difference up to four times as large as the prediction
    torch.testing.assert_close(images(ClassGaussian(), guidance), expected, rtol=0, atol=2e-5)


def test_interval_saves_rows_outside() -> None:
    model = ClassGaussian()
    images(model, Guidance(3.0, 0.25, 0.75))
    u = TABLE.rows[:, 0] / 1000  # 1.0, 0.9, ... 0.1
    assert model.rows == [8 if 0.25 <= time <= 0.75 else 4 for time in u]
    assert model.rows.count(8) == 5


def test_trajectory_before_the_interval_is_unguided() -> None:
    guided, unguided = ClassGaussian(), ClassGaussian()
    images(guided, Guidance(3.0, 0.0, 0.45))
    images(unguided)
    same = [torch.equal(g[0][:4], u[0]) for g, u in zip(guided.calls, unguided.calls, strict=True)]
    assert same == [True] * 7 + [False] * 3  # u = 0.4 is step 6; its input is still the unguided one


def test_interval_that_meets_no_step_is_unguided() -> None:
    assert torch.equal(images(ClassGaussian(), Guidance(3.0, 0.41, 0.49)), images(ClassGaussian()))


def test_interval_holds_its_ends() -> None:
    guidance = Guidance(2.0, 0.3, 0.7)
    assert [t for t in (299.9, 300.0, 500.0, 700.0, 700.1) if guidance.active(t)] == [300.0, 500.0, 700.0]
    assert not Guidance(1.0).active(500.0)


def test_null_label_may_be_another() -> None:
    model = ClassGaussian(null_label=7)
    out = images(model, Guidance(2.0), null_label=7)
    assert set(model.calls[0][2][4:].tolist()) == {7}
    assert torch.equal(out, images(ClassGaussian(), Guidance(2.0)))


def test_clamp_bounds_the_last_image() -> None:
    wide = build_table(FLOW, Prediction.X0, "ddim", 10, clamp=True)
    guidance = Guidance(8.0)
    assert sample(ClassGaussian(), wide, LABELS, SEEDS, SHAPE, guidance=guidance).abs().max() == 1
    assert images(ClassGaussian(), guidance).abs().max() > 2


def test_coefficients_of_a_step() -> None:
    table = build_table(FLOW, Prediction.V, "ddpm", 4)
    assert step_coefficients(table, 1, Guidance(3.0)) == [3.0, *table.rows[1, 1:].tolist(), 1.0]
    assert step_coefficients(table, 1, Guidance(3.0, 0.0, 0.5))[0] == 1.0  # u = 0.75 lies outside
    assert step_coefficients(TABLE, 0, Guidance())[-1] == 0.0


IMAGE = torch.linspace(-1, 1, 18).view(SHAPE)
FREE = torch.tensor([[True, True, False], [False, True, False], [True, False, False]])


def noise(step: int = 0) -> Tensor:
    return normal(SEEDS, torch.full_like(SEEDS, step), 18).view(4, *SHAPE)


@pytest.mark.parametrize("spacing", ["trailing", "shifted", "karras"])
def test_an_image_is_noised_to_its_strength_and_denoised_from_there(spacing: str) -> None:
    """SDEdit (Meng et al. 2021), with the steps of Euler."""
    table = build_table(FLOW, Prediction.X0, "euler", 4, spacing=spacing, strength=0.6, clamp=False)
    model = ClassGaussian()
    got = sample(model, table, LABELS, SEEDS, SHAPE, known=Known(IMAGE))
    times = [*(table.rows[:, 0] / 1000), 0.0]
    assert times[0] == pytest.approx(0.6, abs=1e-3)
    x = (1 - times[0]) * IMAGE + times[0] * noise()
    for u, after in pairwise(times):
        x0 = model(x, torch.full((4,), u * 1000), LABELS)
        x = x + (after - u) * (x - x0) / u
    torch.testing.assert_close(got, x.float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_what_is_not_free_follows_its_own_path_from_noise_to_image(strength: float) -> None:
    table = build_table(FLOW, Prediction.X0, "dpmpp_2m", 5, strength=strength, clamp=False)
    model = ClassGaussian()
    got = sample(model, table, LABELS, SEEDS, SHAPE, known=Known(IMAGE, FREE))
    for i, (x, t, _) in enumerate(model.calls):
        u = float(t[0]) / 1000
        path = (1 - u) * IMAGE + u * noise()
        kept = torch.ones(3, 3, dtype=torch.bool) if i == 0 else ~FREE
        torch.testing.assert_close(x[..., kept], path[..., kept], atol=1e-6, rtol=1e-6)
        if i:
            assert not torch.isclose(x[..., FREE], path[..., FREE], atol=1e-3).all()
    assert got.isfinite().all()


@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp_2m", "ab2"])
def test_with_full_strength_an_image_of_which_all_is_free_changes_nothing(sampler: str) -> None:
    table = build_table(FLOW, Prediction.X0, sampler, 5)
    plain = sample(ClassGaussian(), table, LABELS, SEEDS, SHAPE)
    for known in (Known(IMAGE), Known(IMAGE, torch.ones(3, 3, dtype=torch.bool))):
        assert torch.equal(sample(ClassGaussian(), table, LABELS, SEEDS, SHAPE, known=known), plain)


@pytest.mark.parametrize("spacing", ["karras", "log_snr"])
def test_with_full_strength_the_first_step_begins_as_without_an_image(spacing: str) -> None:
    """Where the schedule leaves a trace of the image at the first step: these begin at noise time 0.999."""
    table = build_table(FLOW, Prediction.X0, "euler", 3, spacing=spacing)
    assert table.levels[0][0] > 5e-4
    begun = []
    for known in (None, Known(IMAGE, FREE)):
        sample(model := ClassGaussian(), table, LABELS, SEEDS, SHAPE, known=known)
        begun.append(model.calls[0][0])
    assert torch.equal(*begun)


def test_little_strength_changes_little() -> None:
    moved = []
    for strength in (0.05, 0.3, 1.0):
        table = build_table(FLOW, Prediction.X0, "euler", 6, strength=strength)
        found = sample(ClassGaussian(), table, LABELS, SEEDS, SHAPE, known=Known(IMAGE))
        moved.append((found - IMAGE).abs().mean())
    assert moved[0] < 0.1 < moved[1] < moved[2]


@pytest.mark.parametrize("strength", [0.0, -1.0, 1.01, float("nan")])
def test_a_strength_out_of_range_is_refused(strength: float) -> None:
    with pytest.raises(ValueError, match=r"strength must lie in 0.01\.\.1, got"):
        build_table(FLOW, Prediction.X0, "euler", 4, strength=strength)


SHARES = {0: [(2, 0.7), (0, 0.3)], 1: [(0, 1.0)], 2: [(1, 0.2), (2, 0.5), (0, 0.3)], 3: [(2, 1.0)]}  # by image


@dataclass(frozen=True)
class Blend:
    """A mixture said by one model: its label i means the classes of image i, and 4 the null class."""

    model: ClassGaussian
    num_classes = 4

    def __call__(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        out = torch.empty_like(x)
        for row, label in enumerate(y.tolist()):
            parts = SHARES.get(label, [(3, 1.0)])
            each = [w * self.model(x[[row]], t[[row]], torch.tensor([k])) for k, w in parts]
            out[row] = torch.stack(each).sum(0)[0]
        return out


@pytest.mark.parametrize(
    "guidance", [Guidance(), Guidance(2.5), Guidance(2.5, 0.3, 0.8)], ids=["off", "on", "some"]
)
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m_sde"])
def test_a_mixture_is_a_weighted_sum_of_predictions(sampler: str, guidance: Guidance) -> None:
    """And a step has a row for each class, and one more where it is guided."""
    table = build_table(FLOW, Prediction("x0"), sampler, 8)
    rows = [(image, *part) for image, parts in SHARES.items() for part in parts[1:]]
    owners, labels, weights = (torch.tensor(column) for column in zip(*rows, strict=True))
    model = ClassGaussian()
    out = sample(model, table, LABELS, SEEDS, SHAPE, guidance=guidance, further=Further(owners, labels, weights))
    guided = [guidance.active(t) for t in table.rows[:, 0].tolist()]
    assert model.rows == [4 + 3 + 4 * second for second in guided]
    expected = sample(Blend(ClassGaussian()), table, torch.arange(4), SEEDS, SHAPE, guidance=guidance)
    torch.testing.assert_close(out, expected, rtol=0, atol=2e-6)
    plain = sample(ClassGaussian(), table, LABELS, SEEDS, SHAPE, guidance=guidance)
    assert [torch.equal(a, b) for a, b in zip(out, plain, strict=True)] == [False, True, False, True]


def test_images_begin_on_the_arc_between_two_seeds() -> None:
    """As in a slow loop over elements; the ends have the bits of their seeds."""
    shape, steps = (2, 24, 24), torch.tensor([0])
    a, b = (normal(torch.tensor([seed]), steps, 1152)[0].double() for seed in (11, 12))
    parts = [0.0, 0.25, 0.5, 1.0]
    begun = first_noise(torch.tensor([11] * 4), shape, [(12, part) for part in parts]).flatten(1)
    for part, noise in zip(parts, begun, strict=True):
        turn = torch.tensor(part * torch.pi / 2, dtype=torch.float64)
        torch.testing.assert_close(noise.double(), turn.cos() * a + turn.sin() * b, rtol=0, atol=1e-6)
    assert torch.equal(begun[0], first_noise(torch.tensor([11]), shape)[0].flatten())
    assert 0.9 < begun[2].std() < 1.1  # halfway on a straight line it would be 0.71
    alone = first_noise(torch.tensor([11]), shape, [(12, 0.25)])[0].flatten()
    assert torch.equal(alone, begun[1])


def test_a_class_to_lead_away_from_takes_the_place_of_the_null_class() -> None:
    """A network's own guidance knows only the null class, so the second row is real then."""
    own = Guidance(2.0, trained=(1.0, 3.0))
    assert own.split(500, 500) == (1.0, 2.0)
    assert Guidance(2.0, trained=(1.0, 3.0), negative=True).split(500, 500) == (2.0, 1.0)
    assert Guidance(1.0, trained=(1.0, 3.0), negative=True).split(500, 500) == (1.0, 1.0)
