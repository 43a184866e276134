"""The report: what it says for which lines, and the same bytes from the same lines."""

import io
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from run import main
from tests.training.comparison_lines import (
    PLACE,
    judge,
    line,
    other_lines,
    rules,
    timing,
    training_lines,
    write_docs,
    write_gallery,
)
from tests.training.test_effects import scaling
from training.comparison import rates
from training.comparison.beside import TEXTS, figures
from training.comparison.campaign_list import read_list
from training.comparison.drawing import COLOURS, Picture, figure, plain_values, source
from training.comparison.effects import effects_of
from training.comparison.facts import network_facts
from training.comparison.galleries import (
    HALVES,
    WHOLE,
    agreement_texts,
    agreements,
    kinds,
    likeness,
    load,
    trajectories,
)
from training.comparison.learning import scaling as scaling_picture
from training.comparison.page import markdown, page
from training.comparison.report import build, write_report
from training.comparison.selection import Lines
from training.comparison.verdicts import judge as judge_all
from training.comparison.verdicts import read_questions
from training.comparison.words import summary

ROOT = Path(__file__).resolve().parents[2]
QUESTIONS = read_questions(ROOT / "docs/comparison/questions.toml")


@pytest.fixture(scope="module")
def lines() -> Lines:
    return training_lines() + other_lines()


@pytest.fixture(scope="module")
def docs(lines: Lines, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a whole campaign, with half sets for D4, probes for D5 and the project's own figures for D9."""
    halves = [
        line("D4", n, 1, recipe={"seed": 1, "subset": half}, run=f"D4-{n}-seed1-subset{half[0]}of2")
        for n in ("dit", "unet")
        for half in ("1/2", "2/2")
    ]
    probes = [probe(n, s) for n in ("dit", "unet") for s in (1, 2)]
    graded = [by_evaluations(n, s) for n in ("dit", "unet") for s in (1, 2)]
    docs = write_docs(tmp_path_factory.mktemp("campaign") / "docs", lines + halves + probes + graded)
    for name in ("evaluations.jsonl", "cpu.json"):
        (docs / name).write_bytes((ROOT / "docs" / name).read_bytes())
    for one in probes:
        np.savez_compressed(docs / f"comparison/data/{one['run']}.npz", allow_pickle=False, **probe_arrays())
    return docs


def probe(network: str, seed: int) -> dict:
    found = {"u": [0.1, 0.9], "r2": {"optimal": [0.1, 0.5], "wiener": [0.6, 0.9], "local": [0.8, 0.9]}}
    found |= {"shift_error": [0.1, 0.2], "reach": [2.0, 9.0]}
    found |= {"shift_errors_wiener": {"1": [0.1, 0.1], "2": [0.2, 0.2]}}
    return {"group": "D5", "run": f"D5-D1-{network}-seed{seed}", "network": network, "probe": found, **PLACE}


def by_evaluations(network: str, seed: int) -> dict:
    figures = {count: {"judges": line("D1", network, seed)["judges"]} for count in ("10", "2")}
    found = {"run": f"D1-evaluations-D1-{network}-seed{seed}", "network": network, "by_evaluations": figures}
    return {"group": "D1-evaluations", "guidance": 1.5 if network == "dit" else 1.0, **found, **PLACE}


def probe_arrays() -> dict[str, np.ndarray]:
    """Of two noise levels."""
    random, counts = np.random.default_rng(0), {"noisy": 2, "local": 2, "wiener": 2, "optimal": 2, "outputs": 20}
    images = {name: random.integers(0, 255, (2, count, 1, 32, 32)) for name, count in counts.items()}
    arrays = {name: x.astype(np.uint8) for name, x in images.items()}
    return arrays | {"sensitivity": np.ones((2, 32, 32), np.float16)}


@pytest.fixture(scope="module")
def pages(docs: Path) -> tuple[str, str]:
    report = build(docs)
    return page(report), markdown(report)


def test_two_processes_write_the_same_bytes(docs: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        out = tmp_path / name
        command = [sys.executable, ROOT / "run.py", "compare", "--docs", docs, "--out", out]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines()[:2] == [str(out / f"comparison.{kind}") for kind in ("html", "md")]
    tops = tmp_path / "a", tmp_path / "b"
    a, b = ({p.relative_to(top): p.read_bytes() for p in top.rglob("*.*")} for top in tops)
    assert a == b
    assert sum(map(len, a.values())) < 2_000_000


def test_the_page_needs_nothing_else(pages: tuple[str, str]) -> None:
    text, _ = pages
    assert len(text) < 2_000_000
    sources = re.findall(r'(?:src|href|url)\s*[=(]\s*"?([^")\s>]+)', text)
    assert [source for source in sources if not source.startswith(("data:image/png;base64,", "#"))] == []
    assert "<script" not in text
    for picture in re.findall(r"<(?:img|svg)[^>]*>", text):
        assert re.search(r'(?:alt|aria-label)="[^"]{10,}', picture)


def test_ids_in_the_page_are_those_that_are_used(pages: tuple[str, str]) -> None:
    text, _ = pages
    assert set(re.findall(r' id="([^"]+)"', text)) <= set(re.findall(r"#([\w-]+)[\")]", text))


def test_every_sentence_has_its_verdict_and_both_networks(pages: tuple[str, str]) -> None:
    for text in pages:
        for question in QUESTIONS:
            assert question.sentence in text
        assert text.count("3.10 M parameters") >= len(QUESTIONS)
        assert "not measured yet (D2)" in text


def test_every_figure_names_its_runs_and_its_command(pages: tuple[str, str]) -> None:
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", pages[0])
    assert len(captions) > 15
    for caption in captions:
        assert "<code>python run.py compare</code>" in caption
        assert re.search(r"Runs: |the runs stand with|docs/evaluations.jsonl|training/tiles.py", caption)


def test_quality_by_evaluations(pages: tuple[str, str]) -> None:
    (caption,) = (x for x in re.findall(r"<figcaption>(.*?)</figcaption>", pages[0]) if "By evaluations" in x)
    assert "with the guidance DiT 1.5, UNet 1, as in the verdicts." in caption
    assert "Runs: D1-evaluations-D1-dit (seeds 1, 2); D1-evaluations-D1-unet (seeds 1, 2)." in caption


def test_the_markdown_page_shows_the_files_that_are_written(docs: Path, tmp_path: Path) -> None:
    written = {str(path.relative_to(tmp_path)) for path in write_report(docs, tmp_path)}
    shown = re.findall(r"\]\((comparison/[\w.-]+)\)", (tmp_path / "comparison.md").read_text())
    committed = {f"comparison/{name}" for name in ("questions.toml", "runs.jsonl", "README.md")}
    assert written - {"comparison.html", "comparison.md"} == {*shown} - committed
    assert (tmp_path / "comparison/samples.png").read_bytes() != (
        tmp_path / "comparison/tile-samples.png"
    ).read_bytes()
    with Image.open(tmp_path / "comparison/samples.png") as sheet:
        assert sheet.size == (2 * (2 * 4 * 32 + 6), 2 * (10 * 32 + 5))


@pytest.mark.parametrize(
    ("groups", "undecided"),
    [
        ((), 9),
        (("D1-rates",), 9),
        (("D1",), 8),
        (("D8",), 7),
        (("D6",), 6),
        (("D3",), 8),
        (("D1", "D8"), 5),  # the time to train needs both
    ],
)
def test_it_works_with_whatever_there_is(
    groups: tuple[str, ...], undecided: int, lines: Lines, tmp_path: Path
) -> None:
    some = [line for line in lines if line["group"] in groups]
    report = build(write_docs(tmp_path / "docs", some))
    assert "not measured yet" in page(report)
    assert sum(finding.verdict == "undecided" for finding in report.findings) == undecided


def test_the_committed_arrays_are_few_and_of_runs_that_keep_some() -> None:
    folder = ROOT / "docs/comparison"
    lists = [path for path in folder.glob("*.toml") if path.name != "questions.toml"]
    runs = [run for path in lists for run in read_list(path)]
    keep = {run.name for run in runs if run.task == "probe" or (run.task == "train" and run.measure.gallery)}
    found = list((folder / "data").iterdir())
    assert {path.stem for path in found} - keep == set()
    assert sum(path.stat().st_size for path in found) <= 5_000_000


def test_one_point_of_one_run_is_no_result(tmp_path: Path) -> None:
    unet = line("D1", "unet", 1)
    diverged = {key: unet[key] for key in ("group", "run", "network", "recipe")}
    diverged |= {"images_seen": 6016, "guidance": 1.5, "diverged": "loss is nan"}
    some = [line("D1", "dit", 1, 6016), diverged]
    report = build(write_docs(tmp_path / "docs", some, galleries=False))
    assert all(finding.interval is None for finding in report.findings)
    assert "Diverged, and left out of all figures: D1-unet-seed1." in markdown(report)


def test_a_damaged_line_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    docs = write_docs(tmp_path / "docs", [])
    (docs / "comparison/runs.jsonl").write_text('{"group": \n{}\n')
    assert main(["compare", "--docs", str(docs)]) == 2
    assert "runs.jsonl, line 1 is damaged" in capsys.readouterr().err


# The paragraph for a reader in a hurry


def said(values: dict[str, float], spread: float = 0.001) -> str:
    effects = {name: {seed: mean + spread * seed for seed in range(1, 6)} for name, mean in values.items()}
    return " ".join(summary(judge_all(QUESTIONS, effects), [line("D1", "dit", 1), line("D1", "unet", 1)]))


def test_nothing_measured_recommends_nothing() -> None:
    text = said({})
    assert text.startswith("These runs do not tell yet which of the two to use.")
    assert "Use the" not in text
    assert "Undecided, not measured yet: the time to train, the Frechet distance," in text


def test_what_holds_is_recommended_and_the_reverse_for_the_other_network() -> None:
    text = said({"faster-to-train": 2, "local-details": -0.3, "strong-baseline": -0.4, "global-coherence": 0.3})
    assert "Use the UNet when the time to a low denoising loss counts." in text
    low = "samples must have a low Frechet distance"
    assert f"Use the DiT when {low}, fine texture must be right or all parts must fit together." in text


def test_what_is_undecided_is_not_recommended() -> None:
    text = said({"faster-to-train": 0.3}, spread=0.2)
    assert "Use the" not in text
    assert "Measured and undecided: the time to train." in text


def test_no_more_is_said_than_was_tested() -> None:
    """Below the margin for sure, but perhaps not above minus the margin: no word for the other network."""
    text = said({"long-range": -0.05, "strong-baseline": -0.001})
    assert "Use the" not in text
    far = "In parts far apart the DiT is not ahead by what matters; whether it is behind by as much is open."
    assert far in text
    assert "There is no difference that matters in the Frechet distance." in text


def test_seeds_that_are_still_to_come_leave_it_undecided() -> None:
    effects = {"faster-to-train": {seed: 2 + seed / 100 for seed in (1, 2, 3, 4)}}
    finding, *_ = judge_all(QUESTIONS, effects)
    assert (finding.verdict, finding.adjusted, finding.interval is None) == ("undecided", 1, False)
    text = " ".join(summary([finding], []))
    assert "Undecided, not all seeds are measured yet: the time to train." in text


def test_the_growth_of_costs_is_told() -> None:
    text = said({"quadratic-attention": -0.1, "linear-convolutions": -0.6}, spread=0.01)
    assert "On this CPU the time of plain attention grows as O(n^2): exponent 1.93 (1.91 to 1.95)." in text
    assert "On this CPU the time of convolutions grows more slowly than O(n): exponent 0.43 (0.41 to 0.45)." in text


def test_an_exponent_does_not_tell_who_is_ahead() -> None:
    """The DiT falls faster, but from so high that the UNet is ahead at all budgets."""
    some = [
        x | {"loss": {"test": {"mean": x["loss"]["test"]["mean"] * factor}}}
        for name, power, factor in (("dit", 0.1, 2), ("unet", 0.05, 1))
        for seed in (1, 2, 3)
        for x in scaling(name, seed, power + 1e-4 * seed)
    ]
    found = judge_all(QUESTIONS, effects_of(some))
    text = " ".join(summary(found, some))
    assert re.search(
        r"“DiT: more scalable” holds: .* \+0\.050 .* at all budgets that were measured the UNet has", text
    )
    assert "Use the" not in text
    assert "the smallest was the best" not in text
    shown = text_of("more-scalable", "lowest loss", some)
    assert shown.startswith("DiT 2.00, ")
    assert shown.endswith("by the smallest width in 0 of 9")
    picture = scaling_picture(some)
    assert isinstance(picture, Picture)
    assert "D2-dit-w0-1e+12 (seeds 1-3)" in picture.caption


# Beside the verdicts


def test_every_beside_has_a_text(lines: Lines) -> None:
    named = {(q.name, what) for q in QUESTIONS for what in q.beside if not what.startswith("D4")}
    assert named == set(TEXTS)
    texts = {HALVES: "h", WHOLE: "w"}
    missing = {
        (q.name, what) for q in QUESTIONS for what, text in figures(q, lines, texts) if text == "not measured yet"
    }
    assert missing == {(name, what) for name, what in named if name == "more-scalable" or what.startswith("D5")}


def text_of(name: str, what: str, some: Lines) -> str:
    (question,) = (q for q in QUESTIONS if q.name == name)
    (found,) = (text for w, text in figures(question, some, {}) if w.startswith(what))
    return found


def test_figures_beside_by_hand() -> None:
    some = [
        line("D1", n, s, images, loss, judges=[judge(accuracy=a, kid=0.03), judge(accuracy=a, kid=0.05)])
        for n, ends, a in (("dit", (0.4, 0.2), 0.9), ("unet", (0.2, 0.1), 0.95))
        for s in (1, 2)
        for images, loss in zip((24000, 96000), ends, strict=True)
    ]
    assert text_of("strong-baseline", "accuracy", some) == "DiT 90.0 % (90.0 to 90.0); UNet 95.0 % (95.0 to 95.0)"
    kid = "DiT 0.0600 (0.0600 to 0.0600); UNet 0.0600 (0.0600 to 0.0600)"
    assert text_of("strong-baseline", "KID", some) == kid
    assert "images 4.00 (4.00 to 4.00)" in text_of("faster-to-train", "the same against images", some)
    assert "FLOP 3.60 (3.60 to 3.60)" in text_of("faster-to-train", "the same against images", some)


def test_the_effect_by_each_judge() -> None:
    ratios = {"dit": (4.0, 9.0), "unet": (2.0, 3.0)}
    some = [line("D1", n, s, judges=[judge(0.9, x) for x in both]) for n, both in ratios.items() for s in (1, 2)]
    assert text_of("strong-baseline", "the same by each judge", some).endswith("mean over seeds: 2.00, 3.00")


def test_what_the_distance_alone_costs() -> None:
    """Of the DiT 10 points, of the UNet 50."""
    shares = {"dit": {"far": 0.8, "near": 0.9}, "unet": {"far": 0.2, "near": 0.7, "far_clear": 0.5}}
    some = [line("D6", n, s, judges=[], rules=rules(**x)) for n, x in shares.items() for s in (1, 2)]
    assert "less the UNet 40.0 points" in text_of("long-range", "far less near", some)
    assert "less the UNet 60.0 points" in text_of("long-range", "the same after the last", some)
    assert text_of("long-range", "far patches", some).endswith("UNet 50.0 % (50.0 to 50.0)")


def test_what_no_function_measures_is_an_error() -> None:
    odd = replace(QUESTIONS[0], beside=("the accuracy",))
    with pytest.raises(
        ValueError, match='faster-to-train: beside has "the accuracy", but .* knows "the same against'
    ):
        figures(odd, [], {})


def test_a_question_without_an_effect_is_an_error(tmp_path: Path) -> None:
    docs = write_docs(tmp_path / "docs", [], galleries=False)
    path = docs / "comparison/questions.toml"
    path.write_text(path.read_text().replace('name = "long-range"', 'name = "long"'))
    with pytest.raises(ValueError, match="no effect in .*effects.py for question long"):
        build(docs)


def test_facts_are_those_of_the_measurement() -> None:
    """All widths of D2, which have names of their own, and the sizes that D8 timed."""
    widths = ((144, 800_000, 63e6, 286_080), (416, 6_390_000, 489e6, 36_800))
    some = [
        line("D2", "dit", 1, images, parameters=size, flop_per_row=flop, train_flop=54e12, run=f"D2-dit-{width}")
        | {"recipe": {"model": "dit", "arguments": {"hidden_dim": width}, "seed": 1, "lr": 1e-3}}
        for width, size, flop, images in widths
    ]
    assert network_facts(some, "D2", "dit") == (
        " (hidden_dim 144 and 416): 0.80 and 6.39 M parameters, 63 and 489 MFLOP a row, 286,080 and 36,800 images, "
        "54 TFLOP of training, learning rate 0.001, guidance 1.5"
    )
    timed = [line("D1", "dit", 1), timing("dit", 1, 0.004) | {"settings": {"model": "dit"}}]
    assert re.search(r"3\.10 M parameters, MFLOP a row: .* at 64x64", network_facts(timed, "D8", "dit"))


def test_images_until_nine_in_ten_are_right() -> None:
    shares = {6016: 0.6, 24064: 0.96}
    some = [
        line("D6", n, 1, images, judges=[], rules=rules(samples=1000, far=share * (n == "unet")))
        for n in ("dit", "unet")
        for images, share in shares.items()
    ]
    found = text_of("long-range", "images until", some)
    assert found.startswith("DiT in none of 1 runs; UNet 13,861 (one seed")  # 6,016 x 4^(ln 4 / ln 10)


def test_the_size_at_which_both_steps_cost_as_much() -> None:
    """The DiT's grow with the pixels squared, the UNet's linearly, and they meet at 32 pixels."""
    some = [timing("dit", 1, power=2.0), timing("unet", 1, power=1.0)]
    assert text_of("linear-convolutions", "the size", some) == "about 32 pixels a side"


# The rule of choice


def test_the_choice_follows_the_rule(lines: Lines) -> None:
    chosen = rates.choose(lines)
    # of the ratios 1.7, 2.8, 1.7 and 2.7, the first
    assert (chosen["dit"].lr, chosen["dit"].guidance) == (1e-3, 1.0)
    assert (chosen["unet"].lr, chosen["unet"].guidance) == (1e-3, 1.5)
    marks = [(row[0], row[1], row[3]) for row in rates.table(lines, chosen)[1] if row[-1] == "rate and guidance"]
    assert marks == [("DiT", "0.001", "1"), ("UNet", "0.001", "1.5")]


def test_runs_that_do_not_follow_the_rule_are_named(lines: Lines) -> None:
    assert rates.disagreements(lines, rates.choose(lines)) == [
        "The DiT of D1 has rate 0.001 and guidance 1.5, but the rule chooses 0.001 and 1."
    ]


# Samples from the same noise


def test_agreement_beside_the_verdict(docs: Path, lines: Lines) -> None:
    found = load(docs / "comparison/data", lines, "D1")
    assert sorted(found) == [(n, s) for n in ("dit", "unet") for s in range(1, 6)]
    halves = {"dit": [(found["dit", 1], found["dit", 1])], "unet": [(found["dit", 1], found["unet", 2])]}
    pairs = kinds(found, halves)
    assert {kind: len(both) for kind, both in pairs.items()} == {
        "DiT and UNet of one seed": 5, "two seeds of the DiT": 10, "two seeds of the UNet": 10,
        "two DiTs, trained on disjoint halves": 1, "two UNets, trained on disjoint halves": 1,
    }  # fmt: skip
    texts = agreement_texts(agreements(pairs))
    assert texts[HALVES].endswith("DiT 1.000")
    assert "(range of 10 pairs: " in texts[WHOLE]


def test_trajectories_of_one_seed_stand_side_by_side(tmp_path: Path) -> None:
    for name in ("dit", "unet"):
        write_gallery(tmp_path / f"{name}.npz", name)
    found = {}
    for name in ("dit", "unet"):
        with np.load(tmp_path / f"{name}.npz") as arrays:
            found[name, 2] = dict(arrays)
    del found["dit", 2]["trajectories"]
    assert trajectories(found, 2, apart=0) == []
    found["dit", 2]["trajectories"] = found["unet", 2]["trajectories"].repeat(2, 0)  # of a run that kept more
    (sheet,) = trajectories(found, 2, apart=0)
    steps = "1, 3, 6, 10, 15, 20"
    assert sheet.caption.startswith(f"Seed 2: what the networks take an image for after steps {steps} of")
    with Image.open(io.BytesIO(sheet.png)) as picture:
        assert picture.size == (2 * (2 * 6 * 32 + 6), 2 * (5 * 32 + 5))


def test_the_oddest_sample_is_the_least_like_its_class(tmp_path: Path) -> None:
    write_gallery(tmp_path / "a.npz", "a")
    with np.load(tmp_path / "a.npz") as arrays:
        gallery = dict(arrays)
    gallery["images"][5] = 255 - gallery["images"][5]
    assert int(likeness({("dit", 1): gallery})["dit", 1].argmin()) == 5


def test_the_committed_lines_can_be_read() -> None:
    report = build(ROOT / "docs")
    assert len(report.findings) == len(QUESTIONS)
    assert set(effects_of([])) == {question.name for question in QUESTIONS}


# How figures are drawn


def test_a_drawing_takes_the_colours_of_the_page() -> None:
    with figure(1, 1, (3, 2)) as (grid, svg):
        grid[0, 0].plot([1, 2], [1, 2], color=COLOURS["dit"])
        picture = Picture(svg(), "alt", "caption")
    assert COLOURS["dit"] in picture.svg
    text = picture.inline()
    assert text.startswith("<svg ")
    assert "var(--dit)" in text
    assert not set(COLOURS.values()) & set(re.findall(r"#[0-9a-f]{6}", text))
    assert "DejaVu" not in text


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.1, 0.2, ["0.1", "0.12", "0.14", "0.16", "0.18", "0.2"]),
        (1.3, 40, ["2", "5", "10", "20"]),
        (0.001, 1000, ["0.001", "0.01", "0.1", "1", "10", "100", "1000"]),
    ],
)
def test_logarithmic_axes_have_numbers_that_are_said(low: float, high: float, ticks: list[str]) -> None:
    with figure(1, 1, (3, 2)) as (grid, _):
        axis = grid[0, 0].yaxis
        grid[0, 0].set(yscale="log", ylim=(low, high))
        plain_values(axis)
        assert [label.get_text() for label in axis.get_ticklabels()] == ticks


def test_a_caption_names_runs_briefly() -> None:
    some = [line("D1", n, s) for n in ("dit", "unet") for s in ((1, 2, 3) if n == "dit" else (2, 4))]
    said = "Runs: D1-dit (seeds 1-3); D1-unet (seeds 2, 4). Commits: c0ffeec. Machines: Made-up"
    assert source(some).startswith(said)
