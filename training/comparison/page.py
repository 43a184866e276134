"""One self-contained HTML page, and the shorter Markdown page, from the same content."""

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from training.comparison.drawing import Picture
from training.comparison.galleries import Sheet
from training.comparison.rates import Table
from training.comparison.selection import TITLES
from training.comparison.verdicts import FAILS, HOLDS, UNDECIDED, Finding
from training.comparison.words import effect_words, marks, speak

STYLE = Path(__file__).with_name("page.css")
CLASSES = {HOLDS: "holds", FAILS: "fails", UNDECIDED: "open"}
VERDICTS = ["sentence", "verdict", "measured, with its 95 % interval", "what it takes", "seeds"]


@dataclass(frozen=True)
class Section:
    """Text, tables and pictures under a heading. short: the Markdown page has all of its texts and tables, too."""

    title: str
    blocks: Sequence["str | Table | Picture | Sheet"]
    short: bool = False


@dataclass(frozen=True)
class Beside:
    """What stands with one verdict: figures that do not decide it, and both networks' size and budget."""

    figures: list[tuple[str, str]]
    networks: str
    runs: str


@dataclass(frozen=True)
class Report:
    """All content of the pages."""

    summary: list[str]
    findings: list[Finding]
    glance: Picture | str
    beside: dict[str, Beside]  # by the question's name
    sections: list[Section]


def verdict_row(finding: Finding) -> list[str]:
    question = finding.question
    seeds = f"{len(finding.effects)} of {len(question.seeds)}"
    bar = speak(question).bar(question.margin)
    return [question.sentence, finding.verdict, effect_words(finding), bar, seeds]


def p_text(finding: Finding) -> str:
    return f"p = {finding.adjusted:.2g} after Holm" if finding.adjusted >= 1e-4 else "p < 0.0001 after Holm"


# Markdown

INTRODUCTION = """\
[The whole report](comparison.html) has all figures and pictures; download it and open it in a browser.
[questions.toml](comparison/questions.toml) says what each sentence is taken to mean. It was written before the
runs; its head lists what changed later.
`python run.py campaign` adds a line to [runs.jsonl](comparison/runs.jsonl) for every measurement. From these lines
`python run.py compare` writes this page; [comparison/README.md](comparison/README.md) explains both."""
LEVELS = (
    "An interval is that of its sentence alone. A verdict is stricter: it takes all sentences together (Holm), and "
    "those not measured yet count as not passed. So a sentence can be undecided although its interval lies beyond "
    "what it takes. Intervals cover seeds, not other judges, pictures or machines."
)


def markdown(report: Report) -> str:
    rows = [verdict_row(finding) for finding in report.findings]
    parts = [
        "# DiT and UNet compared",
        " ".join(report.summary),
        INTRODUCTION,
        "## The sentences and their verdicts",
    ]
    parts += [table_lines((VERDICTS, rows)), LEVELS, block_lines(report.glance), "## Beside the verdicts"]
    parts.append(
        "These figures do not decide. Where nothing else is said, an interval stands in brackets, 95 % by "
        "Student's t over the seeds."
    )
    for finding in report.findings:
        beside = report.beside[finding.question.name]
        facts = [["**verdict**", f"{finding.verdict}, {p_text(finding)}"], ["**networks**", beside.networks]]
        rows = facts + [[what, shown] for what, shown in beside.figures]
        parts += [f"### {finding.question.sentence}", table_lines((["", ""], rows)), beside.runs]
    for section in report.sections:
        shown = [block_lines(block) for block in section.blocks if section.short or getattr(block, "file", "")]
        parts += [f"## {section.title}", *shown] if any(shown) else []
    return "\n\n".join(filter(None, parts)) + "\n"


def block_lines(block: "str | Table | Picture | Sheet") -> str:
    if isinstance(block, str):
        return block
    if isinstance(block, tuple):
        return table_lines(block)
    return f"{picture_line(block)}\n\n{block.caption}" if block.file else ""


def picture_line(picture: Picture | Sheet) -> str:
    return f"![{picture.alt}](comparison/{picture.file})"


def table_lines(table: Table) -> str:
    head, rows = table
    cells = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


# HTML


def page(report: Report) -> str:
    body = [f"<p class=lead>{' '.join(map(inline, report.summary))}</p>", legend(), "<h2>The sentences</h2>"]
    body.append(block_html(report.glance))
    body += [card(finding, report.beside[finding.question.name]) for finding in report.findings]
    for section in report.sections:
        body += [f"<h2>{inline(section.title)}</h2>", *map(block_html, section.blocks)]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    title = "DiT and UNet compared"
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<title>{title}</title>\n'
        f"<style>\n{STYLE.read_text('utf-8')}</style></head>\n<body><main>\n<h1>{title}</h1>\n"
        + "\n".join(body)
        + "\n</main></body></html>\n"
    )


def legend() -> str:
    chips = "".join(f'<span class="chip {name}"></span>{title} ' for name, title in TITLES.items())
    return (
        f"<p class=legend>{chips}<span>in all figures. Intervals are 95 %, by Student's t over seeds.</span></p>"
        f"<p>{LEVELS}</p>"
    )


def card(finding: Finding, beside: Beside) -> str:
    question, (_, verdict, words, bar, seeds) = finding.question, verdict_row(finding)
    kind = CLASSES.get(verdict, "even")
    facts = [
        ("Measured", f"<b>{inline(words)}</b>"),
        ("It takes", inline(bar)),
        ("Seeds", f"{seeds}; {p_text(finding)}"),
    ]
    facts += [
        ("What", inline(f"{question.measurement}: {question.metric}")),
        ("The two networks", inline(beside.networks)),
    ]
    last = f"<p class=legend>{inline(beside.runs)}</p>"
    rows = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts)
    more = "".join(f"<dt>{inline(what)}</dt><dd>{inline(shown)}</dd>" for what, shown in beside.figures)
    return (
        f"<article class={kind}><h3>{inline(question.sentence)} <span class=verdict>{marks(finding)} "
        f"{verdict}</span></h3><dl>{rows}</dl><details><summary>Beside it, without "
        f"deciding</summary><dl>{more}</dl>{last}</details></article>"
    )


def block_html(block: "str | Table | Picture | Sheet") -> str:
    if isinstance(block, str):
        return f"<p{' class=legend' * block.startswith('Runs: ')}>{inline(block)}</p>"
    if isinstance(block, tuple):
        return table_html(block)
    if isinstance(block, Picture):
        drawn = block.inline().replace("<svg ", f'<svg role="img" aria-label="{html.escape(block.alt)}" ', 1)
    else:
        data = base64.b64encode(block.png).decode()
        drawn = f'<img src="data:image/png;base64,{data}" alt="{html.escape(block.alt)}">'
    return f"<figure><div class=wide>{drawn}</div><figcaption>{inline(block.caption)}</figcaption></figure>"


def table_html(table: Table) -> str:
    head, rows = table
    top = "".join(f"<th>{inline(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{inline(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<div class=wide><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"


def inline(text: str) -> str:
    """Escaped; code and bold as in Markdown."""
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))
    return re.sub(r"\*\*([^*]+)\*\*", r"<b>\1</b>", text)
