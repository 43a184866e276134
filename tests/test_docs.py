"""The documents say what is so: tests, settings, metrics, statuses and files that they name."""

import ast
import re
from pathlib import Path

import pytest

from service.errors import PROBLEMS
from service.keys import ApiKey, KeyRing
from service.metrics import Metrics
from service.settings import PREFIX, Settings

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])

each_page = pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])


def read(name: str) -> str:
    return (ROOT / name).read_text()


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    local = [link for link in links if not re.match(r"[a-z]+:", link)]
    assert [link for link in local if not (page.parent / link).exists()] == []


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
    metrics = Metrics(["dit"])
    metrics.watch(dict, {"dit": {"device": "cpu"}})
    KeyRing({"alice": ApiKey.model_validate({"key": "alice-has-a-secret-key"})}, metrics.registry)
    families = metrics.registry.collect()
    return {family.name + ("_total" if family.type == "counter" else "") for family in families}


def test_every_metric_is_explained_and_none_is_made_up() -> None:
    page = read("docs/observability.md")
    named = {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"\bdiffusion_[a-z_]+[a-z]", page)}
    assert named == exported()


def test_every_status_is_explained() -> None:
    cells = re.findall(
        r"^\| ([45]\d\d[^|]*) \| \S", read("docs/api.md"), re.MULTILINE
    )  # a status, and when it comes
    told = {int(status) for cell in cells for status in re.findall(r"\d{3}", cell)}
    ours = {error.status for error in PROBLEMS} | {error.protocol_status for error in PROBLEMS} - {0}
    assert told == ours | {405}  # that one is the framework's
