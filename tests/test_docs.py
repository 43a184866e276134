"""The documents agree with the code: tests, settings, metrics, statuses and files that they name exist."""

import ast
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.errors import PROBLEMS
from service.settings import PREFIX, Settings
from service.web.dialects import INFERENCE, OPENAI, OWN
from tests.metrics import registry

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])

LINES, WORDS, USUAL_WORDS = 160, 40, 25  # of the README; of a sentence; of nine in ten of the README's sentences

each_page = pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])


def read(name: str) -> str:
    return (ROOT / name).read_text()


def links(page: Path) -> set[Path]:
    """Files of this repository that a page links to or shows."""
    found = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    return {(page.parent / link).resolve() for link in found}


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    assert [link for link in links(page) if not link.exists()] == []


def anchors(page: Path) -> set[str]:
    """Of the page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_links_to_headings_lead_somewhere(page: Path) -> None:
    found = re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text())
    assert [link for link in found if link[1] not in anchors(page.parent / link[0] if link[0] else page)] == []


@each_page
def test_tests_that_are_named_exist(page: Path) -> None:
    for file, name in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page.read_text()):
        tree = ast.parse(read(file))
        functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert not name or name in functions, f"{file} has no {name}"


def test_every_threat_names_its_test() -> None:
    rows = [line for line in read("docs/security.md").splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 15
    for row in rows:
        _, defence, where, shown = row.strip("| ").split(" | ")
        assert defence
        assert "`tests/" in shown, row
        for file in re.findall(r"`([\w/]+\.py)`", where):
            assert (ROOT / file).exists(), file


@each_page
def test_settings_that_are_named_exist(page: Path) -> None:
    named = set(re.findall(rf"\b{PREFIX}([A-Z_]+[A-Z])\b", page.read_text()))
    assert named - {name.upper() for name in Settings.model_fields} == set()


def test_every_setting_is_explained() -> None:
    page = read("docs/configuration.md")
    assert [name for name in Settings.model_fields if f"`{PREFIX}{name.upper()}`" not in page] == []


def exported() -> set[str]:
    """Names of all metrics, as the exposition has them."""
    families = registry(keys=["alice"]).collect()
    return {family.name + ("_total" if family.type == "counter" else "") for family in families}


def test_every_metric_is_explained_and_none_is_made_up() -> None:
    page = read("docs/observability.md")
    named = {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"\bdiffusion_[a-z_]+[a-z]", page)}
    assert named == exported()


def test_every_status_is_explained() -> None:
    rows = r"^\| ([45]\d\d[^|]*) \| \S"  # a status, and when it comes
    cells = re.findall(rows, read("docs/api.md"), re.MULTILINE)
    told = {int(status) for cell in cells for status in re.findall(r"\d{3}", cell)}
    ours = {dialect.status(error) for error in PROBLEMS for dialect in (OWN, OPENAI, INFERENCE)}
    assert told == ours | {405}  # that one is the framework's


def sentences(text: str) -> Iterator[str]:
    """Of the prose: without code, tables and headings; a list's item ends like a sentence."""
    text = re.sub(r"^ *```.*?^ *```$", "\n", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"^(\||#).*$", "", text, flags=re.MULTILINE)
    for block in re.split(r"\n\s*\n|\n\s*(?=(?:[-*]|\d+\.) )", text):
        yield from (part for part in re.split(r"(?<=[.!?])[)*]*\s+", block.strip()) if part)


def test_sentences_are_found() -> None:
    prose = "# A title\n\nOne [link](a.md).\nTwo `c.py` in v1.2.\n\n- three\n- four\n  more."
    text = prose.replace("\n\n-", "\n\n| a. B |\n\n```\nNo. No.\n```\n-")
    assert list(sentences(text)) == ["One link.", "Two `c.py` in v1.2.", "- three", "- four\n  more."]


@each_page
def test_sentences_are_short(page: Path) -> None:
    assert [sentence for sentence in sentences(page.read_text()) if len(sentence.split()) > WORDS] == []


def test_the_readme_is_short() -> None:
    text = read("README.md")
    assert len(text.splitlines()) < LINES
    lengths = [len(sentence.split()) for sentence in sentences(text)]
    assert statistics.quantiles(lengths, n=10)[-1] < USUAL_WORDS


def test_the_index_names_every_document() -> None:
    index = ROOT / "docs/README.md"
    assert set(index.parent.glob("*.md")) - {index} <= links(index)


def test_every_picture_is_shown_somewhere() -> None:
    pictures = {path for kind in ("png", "svg") for path in (ROOT / "docs").glob(f"*.{kind}")}
    assert pictures - {link for page in PAGES for link in links(page)} == set()


def make_targets() -> set[str]:
    return set(re.findall(r"^([\w-]+):", read("Makefile"), re.MULTILINE))


@each_page
def test_commands_that_are_named_exist(page: Path) -> None:
    text = page.read_text()
    assert set(re.findall(r"(?:^|`|' )make ([a-z][a-z-]*)", text, re.MULTILINE)) <= make_targets()
    modules = re.findall(r"python -m ((?:benchmarks|kernels|service|models|training)\b[\w.]*)", text)
    files = [(ROOT / f"{name}.py", ROOT / name / "__main__.py") for name in (m.replace(".", "/") for m in modules)]
    assert [module for module, package in files if not module.exists() and not package.exists()] == []


def test_the_readme_begins_with_its_two_commands() -> None:
    block = re.findall(r"^```bash\n(.*?)^```", read("README.md"), re.MULTILINE | re.DOTALL)[0]
    assert [line.split("#")[0].strip() for line in block.splitlines()] == ["make serve", "make test"]


def test_the_readme_quotes_the_results() -> None:
    table = [line for line in read("README.md").splitlines() if line.startswith("|") and "batching" in line]
    rows = [line for line in read("README.md").splitlines() if re.search(r"\d+ / \d+ ms", line)]
    assert len(table) == 1
    assert len(rows) == 4
    assert [line for line in table + rows if line not in read("docs/results.md").splitlines()] == []
