"""The effect of each question from lines made up so that the answer is known by hand."""

import math

import pytest

from tests.training.comparison_lines import judge, line, losses, other_lines, rules, timing, training_lines
from tests.training.test_verdicts import QUESTIONS
from training.comparison.effects import EFFECTS, effects_of, first_reached, lowest_losses, smallest_best
from training.comparison.verdicts import read_questions
from training.comparison.words import best_at_the_edge


def run(group: str, network: str, seed: int, values: dict[int, float], **fields: object) -> list:
    return [line(group, network, seed, images, loss, **fields) for images, loss in values.items()]


def test_every_question_has_an_effect() -> None:
    assert list(EFFECTS) == [question.name for question in read_questions(QUESTIONS)]


def test_no_lines_have_no_effects() -> None:
    assert effects_of([]) == {name: {} for name in EFFECTS}


def test_a_whole_campaign_answers_all_but_the_scaling() -> None:
    counts = {name: len(effects) for name, effects in effects_of(training_lines() + other_lines()).items()}
    assert counts == dict.fromkeys(EFFECTS, 5) | {"inductive-bias": 3, "more-scalable": 0}


def test_a_loss_between_two_points_is_reached_on_a_line_in_logarithms() -> None:
    assert first_reached([100, 400], [4.0, 1.0], 2.0) == pytest.approx(200)
    assert first_reached([100, 400, 800], [4.0, 1.0, 3.0], 1.0) == 400
    assert first_reached([100, 400], [4.0, 1.0], 5.0) == 100  # it was lower already
    assert first_reached([100, 400], [4.0, 1.0], 0.5) is None


SLOW = {24000: 0.4, 96000: 0.2}
QUICK = {24000: 0.2, 96000: 0.1}


def test_the_head_start_counts_seconds_of_images_timed_alone() -> None:
    """The UNet has 0.2 after 24,000 images of 8 ms, the DiT after 96,000 of 4 ms: half of the time.

    A seed takes its own timing, 3 ms, and one without a timing the mean.
    """
    lines = [*run("D1", "dit", 1, SLOW), *run("D1", "unet", 1, QUICK)]
    assert effects_of(lines)["faster-to-train"] == {}  # without timings
    lines += [timing("dit", 1, 0.003), timing("dit", 2, 0.005), timing("unet", 1, 0.008)]
    lines += [*run("D1", "dit", 9, SLOW), *run("D1", "unet", 9, QUICK)]
    expected = {1: math.log2(96 * 3 / (24 * 8)), 9: 1}
    assert effects_of(lines)["faster-to-train"] == pytest.approx(expected)


def test_the_head_start_is_negative_where_the_dit_has_it() -> None:
    lines = [*run("D1", "dit", 2, QUICK), *run("D1", "unet", 2, SLOW)]
    lines += [timing("dit", 1, 0.01), timing("unet", 1, 0.01)]
    assert effects_of(lines)["faster-to-train"] == {2: pytest.approx(-2)}


def test_a_quick_network_may_be_slow_in_seconds() -> None:
    """It needs a quarter of the images, and eight times as long for each."""
    lines = [*run("D1", "dit", 1, SLOW), *run("D1", "unet", 1, QUICK)]
    lines += [timing("dit", 1, 0.001), timing("unet", 1, 0.008)]
    assert effects_of(lines)["faster-to-train"] == {1: pytest.approx(-1)}


def test_the_baseline_is_the_mean_over_judges() -> None:
    lines = [
        *run("D1", "dit", 1, {6016: 0.2, 96000: 0.1}, judges=[judge(ratio=1.0), judge(ratio=5.0)]),
        *run("D1", "unet", 1, {6016: 0.2, 96000: 0.1}, judges=[judge(ratio=1.5), judge(ratio=1.5)]),
    ]
    assert effects_of(lines)["strong-baseline"] == {1: pytest.approx(math.log(3 / 1.5))}


def test_a_run_counts_when_it_has_ended_and_its_twin_too() -> None:
    whole = {6016: 0.2, 96000: 0.1}
    lines = [*run("D1", "dit", 1, whole), *run("D1", "unet", 1, whole), *run("D1", "dit", 2, whole)]
    lines += [*run("D1", "dit", 3, whole), *run("D1", "unet", 3, {6016: 0.2})]
    diverged = {"group": "D1", "run": "D1-unet-seed2", "network": "unet", "images_seen": 96000}
    diverged |= {"diverged": "loss is nan", "recipe": {"seed": 2}}
    lines += [*run("D1", "unet", 2, {6016: 0.2}), diverged]
    assert list(effects_of(lines)["strong-baseline"]) == [1]


def test_runs_that_have_not_seen_the_budget_answer_nothing() -> None:
    lines = [*run("D1", "dit", 1, {6016: 0.2}), *run("D1", "unet", 1, {6016: 0.2})]
    assert effects_of(lines)["strong-baseline"] == {}
    for budget, counted in ((6016, [1]), (96000, [])):
        assert list(effects_of([x | {"budget": budget} for x in lines])["strong-baseline"]) == counted


def test_further_guidance_scales_are_no_points() -> None:
    lines = [*run("D1", "dit", 1, SLOW), *run("D1", "unet", 1, SLOW)]
    lines.append(line("D1", "dit", 1, loss=None, guidance=3.0, judges=[judge(ratio=99.0)]))
    assert effects_of(lines)["strong-baseline"] == {1: 0}


def test_two_runs_of_one_seed_are_refused() -> None:
    lines = [*run("D1", "dit", 1, SLOW), *run("D1", "dit", 1, SLOW, run="D1-dit-again")]
    with pytest.raises(ValueError, match="runs D1-dit-again and D1-dit-seed1 have one seed"):
        effects_of(lines)


def scaling(network: str, seed: int, power: float, best: int = 2) -> list:
    """Four widths for each of three budgets; the best falls with FLOP to the power, others are worse."""
    found = []
    for budget in (1e12, 3e13, 1e15):
        for width in range(4):
            mean = (budget / 1e12) ** -power * (1 + abs(width - best))
            name = f"D2-{network}-w{width}-{budget:g}-seed{seed}"
            found.append(line("D2", network, seed, loss=mean, run=name, flop_per_row=10 + width))
            found[-1] |= {"train_flop": budget * (1 + 0.01 * (width - 2))}
    return found


def test_scaling_is_the_difference_of_the_slopes() -> None:
    lines = scaling("dit", 1, 0.1) + scaling("unet", 1, 0.07)
    assert effects_of(lines)["more-scalable"] == {1: pytest.approx(0.03)}
    assert effects_of(lines[1:])["more-scalable"] == {}  # three widths for one budget
    assert lowest_losses(lines, "dit") == pytest.approx([1, 30**-0.1, 1000**-0.1])
    assert lowest_losses([], "dit") == []
    assert smallest_best(lines, "dit") == [False] * 3
    edge = scaling("unet", 1, 0.1, best=0)
    assert smallest_best(edge, "unet") == [True] * 3
    (text,) = best_at_the_edge(lines[:12] + edge)
    assert "(2.79 to 3.10 M parameters) the smallest was the best in 3 of 6 cases" in text


def far_and_near(group_lines: dict[str, list[float]]) -> list:
    shares = {n: [rules(far=f, texture=1 - f, coherent=f / 2) for f in values] for n, values in group_lines.items()}
    return [
        line("D6", network, 1, images, judges=[], rules=found)
        for network, points in shares.items()
        for images, found in zip((6016, 96000), points, strict=True)
    ]


def test_shares_of_rules() -> None:
    found = effects_of(far_and_near({"dit": [0.2, 0.8], "unet": [0.1, 0.6]}))
    assert found["long-range"] == {1: pytest.approx(0.15)}  # mean over the points
    assert found["local-details"] == {1: pytest.approx(0.4 - 0.2)}  # UNet less DiT, at the end
    assert found["global-coherence"] == {1: pytest.approx(0.4 - 0.3)}


def test_exponents_of_growth() -> None:
    found = effects_of([timing("dit", 3, attention=1.9), timing("unet", 4, power=1.1)])
    assert found["quadratic-attention"] == {3: pytest.approx(-0.1)}
    assert found["linear-convolutions"] == {4: pytest.approx(0.1)}


def test_a_timing_without_the_sizes_answers_nothing() -> None:
    short = timing("dit", 1)
    del short["timing"]["attention_seconds"]["1024"]
    assert effects_of([short])["quadratic-attention"] == {}


def test_few_pictures_count_at_their_lowest_loss() -> None:
    lines = run("D3", "dit", 2, {6016: 0.3, 48000: 0.2, 96000: 0.9}, train_images=300)
    lines += run("D3", "unet", 2, {6016: 0.1, 48000: 0.2, 96000: 0.4}, train_images=300)
    lines += run("D3", "dit", 2, {6016: 9.0, 48000: 9.0, 96000: 9.0}, train_images=100, run="D3-dit-100")
    assert effects_of(lines)["inductive-bias"] == {2: pytest.approx(math.log(2))}


def test_the_loss_is_that_of_held_out_images() -> None:
    lines = [one for n in ("dit", "unet") for one in run("D3", n, 1, {96000: 0.2}, train_images=300)]
    lines[0]["loss"]["train"] = losses(0.001)
    assert effects_of(lines)["inductive-bias"] == {1: 0}
