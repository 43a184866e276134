"""The rules of the house, read off the code: sizes, one reader of the environment, imports without effects, and
the files that must agree with each other."""

import ast
import os
import re
import shutil
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("kernels", "models", "service", "training")
SOURCES = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
SOURCES += [ROOT / "run.py", ROOT / "stepwise.py"]
SETTINGS = Path("service/settings.py")  # the one reader of the environment
FILE_LINES, INIT_LINES, CLASS_LINES, FUNCTION_LINES, LONG_FUNCTION_LINES = 300, 15, 200, 40, 80
FILE_EXCEPTIONS = {Path("service/engine/scheduler.py"): 160}
MEDIAN_FUNCTION_LINES = 8
ENVIRONMENT = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
# Spelled in halves, or this file would break its own rule.
MACHINE_PATHS = ["/" + name + "/" for name in ("work", "Users", "tmp/v")] + [".." + "/shared"]
HOME_PATHS = ["/" + name + "/" for name in ("home", "root")]  # an image has these folders too

Function = ast.FunctionDef | ast.AsyncFunctionDef


def lines_of(node: Function | ast.ClassDef) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def function_budget(node: Function, path: Path) -> int:
    """Constructors of networks are tables of sizes, and a kernel cannot be cut where it would touch memory."""
    kernel = path.parts[0] == "kernels" and any("jit" in ast.unparse(d) for d in node.decorator_list)
    constructor = path.parts[0] == "models" and node.name == "__init__"
    return LONG_FUNCTION_LINES if kernel or constructor else FUNCTION_LINES


def over_budget(code: str, path: Path) -> Iterator[str]:
    """Names and sizes of what is too long in a file that stands at `path` in the project."""
    budget = INIT_LINES if path.name == "__init__.py" else FILE_EXCEPTIONS.get(path, FILE_LINES - 1)
    if (lines := len(code.splitlines())) > budget:
        yield f"{path}: {lines} lines of {budget}"
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ClassDef) and lines_of(node) > CLASS_LINES:
            yield f"class {node.name}: {lines_of(node)} lines of {CLASS_LINES}"
        if isinstance(node, Function) and lines_of(node) > function_budget(node, path):
            yield f"{node.name}: {lines_of(node)} lines of {function_budget(node, path)}"


def environment_uses(code: str) -> list[str]:
    """os.environ, os.getenv and their kin, however they were imported."""
    uses = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute) and node.attr in ENVIRONMENT:
            uses.append(ast.unparse(node))
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            uses += [alias.name for alias in node.names if alias.name in ENVIRONMENT]
    return uses


def test_sizes_stay_within_their_budgets() -> None:
    assert [over for path in SOURCES for over in over_budget(path.read_text(), path.relative_to(ROOT))] == []


def test_most_functions_are_short() -> None:
    trees = [ast.parse(path.read_text()) for path in SOURCES]
    lengths = [lines_of(node) for tree in trees for node in ast.walk(tree) if isinstance(node, Function)]
    assert statistics.median(lengths) < MEDIAN_FUNCTION_LINES


def body(lines: int) -> str:
    return "\n".join(["    pass"] * lines)


@pytest.mark.parametrize(
    ("path", "code", "fits"),
    [
        ("models/a.py", "\n" * 299, True),
        ("models/a.py", "\n" * 300, False),
        ("service/engine/scheduler.py", "\n" * 161, False),
        ("models/__init__.py", "\n" * 16, False),
        ("models/a.py", "def f():\n" + body(39), True),
        ("models/a.py", "async def f():\n" + body(40), False),
        ("models/a.py", "def __init__():\n" + body(79), True),
        ("models/a.py", "def __init__():\n" + body(80), False),
        ("service/a.py", "def __init__():\n" + body(40), False),
        ("kernels/a.py", "@triton.jit\ndef f():\n" + body(79), True),
        ("kernels/a.py", "def f():\n" + body(40), False),
        ("models/a.py", "class C:\n" + body(200), False),
    ],
)
def test_budgets_are_counted(path: str, code: str, fits: bool) -> None:
    assert (list(over_budget(code, Path(path))) == []) is fits


def test_only_the_settings_read_the_environment() -> None:
    readers = {path.relative_to(ROOT): environment_uses(path.read_text()) for path in SOURCES}
    assert {path: uses for path, uses in readers.items() if uses and path != SETTINGS} == {}


@pytest.mark.parametrize(
    "code",
    [
        "import os\nos.environ['A']",
        "import os as o\no.getenv('A')",
        "from os import environ as e",
        "import os\nos.putenv('A', 'b')",
    ],
)
def test_a_reader_of_the_environment_is_seen(code: str) -> None:
    assert environment_uses(code)


def import_effects(files: list[Path], root: Path) -> list[str]:
    """What import_effects.py prints; -B writes no bytecode, -P keeps the program's own folder off sys.path."""
    program = Path(__file__).with_name("import_effects.py")
    command = [sys.executable, "-B", "-P", str(program), *(str(file.relative_to(root)) for file in files)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_imports_have_no_effects() -> None:
    files = [path for path in SOURCES if path.name != "__main__.py"]
    assert import_effects(files, ROOT) == []


def test_every_effect_of_an_import_is_seen(tmp_path: Path) -> None:
    package, inner = tmp_path / "loud" / "__init__.py", tmp_path / "loud" / "inner.py"
    package.parent.mkdir()
    package.write_text("import loud.inner")
    inner.write_text(
        "import os, threading, torch\nfrom pathlib import Path\n"
        "os.environ['LOUD'] = '1'\nPath('loud.txt').write_text('')\nPath('folder').mkdir()\n"
        "threading.Thread(target=int).start()\ntorch.manual_seed(99)\n"
    )
    seen = " ".join(import_effects([package, inner], tmp_path))
    wanted = ("os.putenv", "loud.txt", "os.mkdir", "thread", "torch random state changed")
    assert [effect for effect in wanted if effect not in seen] == []


def project_table() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_version_is_the_newest_in_the_changelog() -> None:
    """Or, while something is unreleased, a development version after it."""
    changelog = (ROOT / "CHANGELOG.md").read_text()
    newest = Version(re.findall(r"^## \[(\d+\.\d+\.\d+)\]", changelog, re.MULTILINE)[0])
    version = Version(project_table()["project"]["version"])
    is_unreleased = "## [Unreleased]\n\n#" in changelog
    assert version.is_devrelease == is_unreleased
    assert version > newest if is_unreleased else version == newest


def test_every_package_is_listed() -> None:
    folders = {path.parent.relative_to(ROOT) for path in SOURCES if path.name == "__init__.py"}
    packages = [".".join(folder.parts) for folder in folders] + ["checkpoints"]  # which holds no Python
    assert sorted(project_table()["tool"]["setuptools"]["packages"]) == sorted(packages)


def test_every_direct_dependency_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {pin.name: pin for pin in (Requirement(line) for line in lines if line and not line.startswith("#"))}
    project = project_table()["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    for wanted in (Requirement(text) for group in groups for text in group):
        if wanted.name != project["name"]:
            (pin,) = pins[wanted.name].specifier
            assert pin.operator == "=="
            assert wanted.specifier.contains(pin.version), wanted


def shared_files() -> list[Path]:
    """What git tracks or would track, relative to the root."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip(f"needs a git checkout: {listed.stderr.strip()}")
    return [Path(name) for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def machine_paths(text: str, path: Path) -> list[str]:
    in_image = path.name == "Dockerfile" or path.parts[0] == "docker"
    needles = MACHINE_PATHS if in_image else MACHINE_PATHS + HOME_PATHS
    return re.findall(rf"(?<![\w.~-])(?:{'|'.join(map(re.escape, needles))})", text)


def test_no_file_names_a_place_on_a_developers_machine() -> None:
    files = {path: (ROOT / path).read_bytes() for path in shared_files()}
    texts = {path: content.decode() for path, content in files.items() if b"\0" not in content}
    assert {path: found for path, text in texts.items() if (found := machine_paths(text, path))} == {}


@pytest.mark.parametrize("needle", MACHINE_PATHS + HOME_PATHS)
def test_a_place_on_a_developers_machine_is_seen(needle: str) -> None:
    assert machine_paths(f"see '{needle}x'", Path("README.md"))
    assert not machine_paths(f"https://example.org{needle}x", Path("README.md"))


def readme_tree(text: str) -> Iterator[str]:
    """Paths of the annotated tree: the fenced block with a line that starts with run.py.

    A line is `path   what it is`, two spaces deeper than the folder it lies in; folders end in a slash.
    """
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (tree,) = (block for block in blocks if re.search(r"^run\.py\s", block, re.MULTILINE))
    folders: list[str] = []
    for line in tree.splitlines():
        for name in leading_paths(line):
            depth = (len(line) - len(line.lstrip())) // 2
            folders[depth:] = [name] if name.endswith("/") else []
            yield "".join(folders[:depth]) + name


def leading_paths(line: str) -> Iterator[str]:
    """`a.py b.py  what they are` gives a.py and b.py."""
    for word in line.split():
        if not re.fullmatch(r"[\w./-]+(/|\.[a-z]+)|\.?[A-Z][A-Za-z]+file|LICENSE", word):
            return
        yield word


def test_the_tree_in_the_readme_names_what_exists() -> None:
    tree = set(readme_tree((ROOT / "docs/architecture.md").read_text()))
    assert {name + "/" for name in PACKAGES} <= tree
    assert [name for name in sorted(tree) if not (ROOT / name).exists()] == []


def missing_from(tree: set[str], files: list[Path]) -> list[str]:
    """Top-level folders that a tree leaves out, and modules of the folders of which it lists some modules."""
    listed = {name.rpartition("/")[0] for name in tree if name.endswith(".py") and "/" in name}
    folders = {f"{path.parts[0]}/" for path in files if len(path.parts) > 1 and path.parts[0][0] != "."}
    modules = {str(path) for path in files if path.suffix == ".py" and path.stem[:2] != "__"}
    return sorted((folders - tree) | {name for name in modules - tree if name.rpartition("/")[0] in listed})


def test_the_tree_in_the_readme_leaves_nothing_out() -> None:
    assert missing_from(set(readme_tree((ROOT / "docs/architecture.md").read_text())), shared_files()) == []


def test_what_a_tree_leaves_out_is_seen() -> None:
    files = [Path(name) for name in ("a/x.py", "a/y.py", "a/__init__.py", "b/z.py", "c/w.py", ".ci/run")]
    assert missing_from({"a/", "a/x.py", "b/"}, files) == ["a/y.py", "c/"]


def test_the_tree_in_a_readme_is_read() -> None:
    tree = "run.py  starts\na/  folder\n  b/  inner\n    c.py d.py  both\ne.py"
    text = f"```bash\nmake serve\n```\n\n```text\n{tree}\n```\n"
    assert list(readme_tree(text)) == ["run.py", "a/", "a/b/", "a/b/c.py", "a/b/d.py", "e.py"]


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run make in a folder with the Makefile alone, without the variables of a make that may run these tests."""
    shutil.copy(ROOT / "Makefile", folder)
    environment = {"PATH": os.environ["PATH"], "HOST": "name-of-this-machine"}
    command = ["make", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        (None, "There is no ./python here: install Python 3.11 or newer, or name one with PYTHON=."),
        ('[ "$1" = -V ] && echo Python 3.9.2', "./python is Python 3.9.2: Python 3.11 or newer is needed"),
        ('case "$2" in *venv) exit 1; esac', "install its venv package (python3-venv on Debian)."),
    ],
    ids=["missing", "old", "no-venv"],
)
def test_make_says_what_is_wrong_with_python(script: str | None, sentence: str, tmp_path: Path) -> None:
    if script:
        (tmp_path / "python").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "python").chmod(0o755)
    done = make(tmp_path, "serve", "PYTHON=./python")
    assert done.returncode != 0
    assert sentence in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_make_serve_passes_host_and_port(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "constraints.txt").touch()
    assert make(tmp_path, "-n", "serve").stdout.endswith("run.py serve --host 127.0.0.1 --port 8000\n")
    assert make(tmp_path, "-n", "serve", "PORT=90", "HOST=h").stdout.endswith("run.py serve --host h --port 90\n")


def test_the_columns_of_make_help_are_straight(tmp_path: Path) -> None:
    lines = make(tmp_path, "help").stdout.splitlines()
    assert {(line[14] == " ", line[15] == " ") for line in lines} == {(True, False)}
