"""The report of the comparison: docs/comparison.html and docs/comparison.md from the lines and arrays of the runs.

Nothing is trained and nothing is sampled. The same inputs make the same bytes, with the pinned versions.
"""

import re
from pathlib import Path

from models.files import replace_file
from training.comparison import costs, fields, galleries, learning, memory, rates
from training.comparison.beside import figures
from training.comparison.drawing import Picture, source
from training.comparison.effects import effects_of
from training.comparison.facts import networks
from training.comparison.galleries import Sheet
from training.comparison.page import Beside, Report, Section, markdown, page
from training.comparison.rates import Table
from training.comparison.results import read_results
from training.comparison.selection import MISSING, Lines, diverged, of, trained_on
from training.comparison.verdicts import Finding, Question, interval, judge, read_questions
from training.comparison.words import number, percent, span, speak, summary


def write_report(docs: Path, out: Path) -> list[Path]:
    """Both pages, and the pictures that the Markdown page shows, in out/comparison.

    docs: the folder with comparison/questions.toml, comparison/runs.jsonl, comparison/data, evaluations.jsonl and
    cpu.json. Only the first must exist.

    Raises:
        OSError: no questions, or nothing can be written.
        ValueError: questions or lines that cannot be read.
    """
    report = build(docs)
    files = {out / "comparison.html": page(report).encode(), out / "comparison.md": markdown(report).encode()}
    for block in [report.glance, *(block for section in report.sections for block in section.blocks)]:
        if isinstance(block, Picture | Sheet) and block.file:
            content = block.svg.encode() if isinstance(block, Picture) else block.png
            files[out / "comparison" / block.file] = content
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content)
    return list(files)


def build(docs: Path) -> Report:
    folder = docs / "comparison"
    questions, lines = read_questions(folder / "questions.toml"), read_results(folder / "runs.jsonl")
    effects = effects_of(lines)
    if unknown := [question.name for question in questions if question.name not in effects]:
        raise ValueError(f"no effect in training/comparison/effects.py for question {', '.join(unknown)}")
    findings = judge(questions, effects)
    found = galleries.load(folder / "data", lines, "D1")
    agreed = galleries.agreements(galleries.kinds(found, galleries.halves(folder / "data", lines)))
    texts = galleries.agreement_texts(agreed)
    return Report(
        summary(findings, lines),
        findings,
        learning.glance(findings),
        {q.name: beside(q, lines, texts) for q in questions},
        [
            choices(lines),
            real_images(lines),
            qualities(lines),
            Section("What more compute buys", [learning.scaling(lines)]),
            Section("Samples from the same noise", galleries.sheets(found, lines, "D1", "samples.png")),
            agreements(agreed, of(lines, "D1") + of(lines, "D4")),
            rule_section(folder / "data", lines),
            Section("Few pictures", [memory.few_pictures(lines)]),
            mechanism(folder / "data", lines),
            Section("Step time", [costs.steps(lines)]),
            serving(docs),
            gaps(findings, lines),
        ],
    )


def beside(question: Question, lines: Lines, texts: dict[str, str]) -> Beside:
    """What stands with a verdict. texts: of D4, by name."""
    groups = (speak(question).needs or question.measurement).split(" and ")
    groups += re.findall(r"\bD\d(?=:)", " ".join(question.beside))
    groups += ["D1"] if "D4" in groups else []  # with whose samples D4's are compared
    made_by = " ".join(sources([line for group in dict.fromkeys(groups) for line in of(lines, group)]))
    return Beside(figures(question, lines, texts), networks(lines, question.measurement), made_by or MISSING)


def choices(lines: Lines) -> Section:
    chosen = rates.choose(lines)
    text = (
        "The learning rate with the lowest held-out loss after the last image, then the guidance with the lowest "
        "Frechet ratio at this rate. Both are chosen on seed 0, on held-out pictures that no verdict is "
        "measured on, and by classifiers that no verdict asks. A guidance of 1 is none, and the lowest that was "
        "tried."
    )
    wrong = [f"**The runs do not follow the rule.** {text}" for text in rates.disagreements(lines, chosen)]
    used, pictures = of(lines, "D1-rates"), [learning.rates(lines), learning.guidance(chosen)]
    blocks = [text, *wrong, rates.table(lines, chosen), *sources(used), *pictures]
    return Section("Learning rate and guidance", blocks, short=True)


def sources(used: Lines) -> list[str]:
    """Under a table; a run that diverged is in none."""
    used = [line for line in used if "diverged" not in line]
    return [source(used)] if used else []


REAL = {"accuracy_real": "accuracy", "kid_real": "KID", "precision_real": "precision", "recall_real": "recall"}


def real_images(lines: Lines) -> Section:
    """The floor: what held-out images get in the place of samples."""
    text = (
        "What held-out images get in the place of the samples. Guidance can make samples easier to recognise than "
        "these. All but the accuracy are means of 20 draws of two disjoint sets of real images. Both sets have the "
        "same number of each class, which presses the KID below 0. So only the KID less this floor can be read, "
        "and it stands in all other tables and figures. The interval covers the training of "
        "the judges, by three seeds. It does not cover another choice of the held-out images, which are the same "
        "for both networks."
    )
    used = of(lines, "D1", keep=lambda x: bool(x.get("judges")))
    blocks = [text, floor([line["judges"] for line in used])] if used else [text]
    return Section("Real images against real images", [*blocks, *sources(used)], short=True)


def floor(judged: list[Lines]) -> Table:
    """A figure a row; of each judge the mean over all lines, which differ only where the sizes of samples do."""
    rows = []
    for name, title in {"matched_real": "Frechet distance", **REAL}.items():
        by_judge = zip(
            *([j["frechet"][name] if name == "matched_real" else j[name] for j in js] for js in judged), strict=True
        )
        known = interval([sum(values) / len(values) for values in by_judge])
        rows.append([title, span(known, percent if name not in ("matched_real", "kid_real") else number)])
    return ["figure", "real images, three judges"], rows


def qualities(lines: Lines) -> Section:
    pictures = [
        learning.quality(lines, learning.MAIN, "Loss, Frechet ratio and accuracy", "quality.svg"),
        learning.quality(lines, learning.MORE, "KID, precision and recall"),
        learning.levels(lines),
        learning.evaluations(lines),
    ]
    return Section("Quality against what it costs", pictures)


def agreements(found: galleries.Agreements, used: Lines) -> Section:
    text = (
        "Correlation of the pixels of two networks' samples. Two samples of one class are alike from any noise, "
        "so only the difference is owed to the noise. A partner counts as found if no other sample of its class "
        "correlates more."
    )
    return Section("Agreement as a number", [text, galleries.agreement_table(found), *sources(used)], short=True)


def rule_section(folder: Path, lines: Lines) -> Section:
    found = galleries.load(folder, lines, "D6")
    text = (
        "Synthetic pictures whose rules a program checks in every sample, so no classifier judges them. The "
        "learning rates are those chosen on the digits. No network gets guidance."
    )
    samples = galleries.sheets(found, lines, "D6", "tile-samples.png", compared=False)
    blocks = [text, galleries.real_tiles(), memory.rules(lines), *samples]
    return Section("Rules between the parts of a picture", blocks)


def mechanism(folder: Path, lines: Lines) -> Section:
    pictures = [memory.denoisers(folder, lines), *fields.sheets(folder, lines)]
    return Section("Which denoiser a network has become", pictures)


def serving(docs: Path) -> Section:
    tuned, cpu = costs.read_serving(docs)
    found = costs.reported(tuned, cpu)
    text = (
        "What an image costs where the service runs on a CPU. This is no verdict: the shipped networks are "
        "larger than the two above, differ in size from each other, and are tuned for few steps."
    )
    table = costs.serving_table(found)
    return Section("Cost to serve", [text, table, costs.serving(found, tuned, cpu)], short=bool(table[1]))


def gaps(findings: list[Finding], lines: Lines) -> Section:
    """What a reader must know is missing."""
    lost = diverged(lines)
    said = [f"Diverged, and left out of all figures: {', '.join(lost)}."] if lost else ["No run has diverged."]
    whole = {f.question.measurement: (len(f.effects), len(f.question.seeds)) for f in findings}
    open_ones = [f"{name} ({n} of {seeds} seeds)" for name, (n, seeds) in sorted(whole.items()) if n < seeds]
    if open_ones:
        said.append(f"Not whole yet: {', '.join(open_ones)}.")
    said += [f"{name} is not measured yet." for name in ("D4", "D5", "D1-evaluations") if not of(lines, name)]
    if not of(lines, "D3", keep=trained_on(1000)):
        said.append("D3 with 1,000 pictures is not measured yet.")
    said.append("D7 (predictions and patch sizes) and D10 (parts of the networks) are not measured.")
    return Section("What is missing", said, short=True)
