"""What CONTRIBUTING.md promises to contributors: the hooks work, and the forms on GitHub are complete."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
HOOKS = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
FORMS = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("[!c]*.yml"))


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Without the user's own settings of git, and with a cache of pre-commit's own."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(cwd), "PRE_COMMIT_HOME": str(cwd / "cache")}
    names = [f"GIT_{role}_{part}" for role in ("AUTHOR", "COMMITTER") for part in ("NAME", "EMAIL")]
    environment |= dict.fromkeys(names, "somebody@example.org")
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty one with our hook for messages."""
    folder = tmp_path_factory.mktemp("repository")
    (folder / ".pre-commit-config.yaml").write_text((ROOT / ".pre-commit-config.yaml").read_text())
    for command in (
        ["git", "init", "-q"],
        ["git", "add", "."],
        [Path(sys.executable).with_name("pre-commit"), "install", "--hook-type", "commit-msg"],
    ):
        done = run(*command, cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize(
    ("message", "taken"),
    [
        ("a" * 72, True),
        ("ä" * 72, True),
        ("Short\n\n" + "a" * 100, True),
        ("a" * 73, False),
        ("ä" * 73 + "\n\nbody", False),
    ],
    ids=["72", "72-umlauts", "long-body", "73", "73-umlauts"],
)
def test_a_subject_has_at_most_72_characters(message: str, taken: bool, repository: Path) -> None:
    done = run("git", "commit", "-q", "--allow-empty", "-m", message, cwd=repository)
    assert (done.returncode == 0) is taken, done.stderr
    assert ("Failed\n- hook id: subject" in done.stderr) is not taken


def test_hooks_need_no_network() -> None:
    assert [repository["repo"] for repository in HOOKS["repos"]] == ["local"]
    hooks = HOOKS["repos"][0]["hooks"]
    assert {hook["language"] for hook in hooks} <= {"system", "pygrep"}
    programs = [hook["entry"].split()[0] for hook in hooks if hook["language"] == "system"]
    assert {Path(program).name for program in programs} == {"ruff", "make"}


@pytest.mark.parametrize("form", FORMS, ids=[form.stem for form in FORMS])
def test_a_form_for_issues_is_complete(form: Path) -> None:
    values = yaml.safe_load(form.read_text())
    assert {"name", "description", "body"} <= set(values)
    assert all(field["type"] == "textarea" and field["attributes"]["label"] for field in values["body"])
    ids = [field["id"] for field in values["body"]]
    assert len(ids) == len(set(ids)) > 2


def test_there_are_forms_for_bugs_and_features_only() -> None:
    assert [form.stem for form in FORMS] == ["bug", "feature"]
    chooser = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE/config.yml").read_text())
    assert chooser["blank_issues_enabled"] is False
