"""The wheel that pip, pipx and uv install: what is in it, and its command in a folder that is not the project's."""

import configparser
import subprocess
import sys
import tomllib
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

import stepwise
from service.web.info import PROJECT, version

ROOT = Path(__file__).resolve().parents[1]
# What the console script does. It prints where its checkpoints come from.
COMMAND = """
import sys
from importlib.metadata import entry_points
(script,) = entry_points(group="console_scripts", name="stepwise")
code = script.load()()
from models.files import default_checkpoints
print(default_checkpoints())
sys.exit(code)
"""


def run_python(code: str, *arguments: str, cwd: Path, path: str = "") -> str:
    command = [sys.executable, "-c", code, *arguments]
    environment = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built by setuptools itself, which asks no network and leaves nothing in the project's folder."""
    pytest.importorskip("setuptools", minversion="77", reason="the wheel is built by setuptools 77 or newer")
    folder = str(tmp_path_factory.mktemp("wheel"))
    steps = ["egg_info", "--egg-base", folder, "build", "--build-base", f"{folder}/build"]
    steps += ["bdist_wheel", "--dist-dir", folder, "--bdist-dir", f"{folder}/bdist"]
    run_python("import setuptools; setuptools.setup()", "-q", *steps, cwd=ROOT)
    (file,) = Path(folder).glob("*.whl")
    return zipfile.ZipFile(file)


@pytest.fixture
def metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    return Parser().parsestr(wheel.read(name).decode())


def test_the_wheel_holds_the_product_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    tops = {Path(name).parts[0] for name in wheel.namelist() if ".dist-info/" not in name}
    code = {"kernels", "models", "service", "training", "run.py", "stepwise.py"}
    assert tops == code | {"checkpoints"}
    kinds = {Path(name).suffix for name in wheel.namelist() if Path(name).parts[0] in code - {"service"}}
    assert kinds == {".py", ".css"}  # of the comparison's report
    assert "service/web/static/index.html" in wheel.namelist()


def test_the_wheel_holds_the_shipped_checkpoints_without_their_loss_curves(wheel: zipfile.ZipFile) -> None:
    files = {Path(name) for name in wheel.namelist() if name.startswith("checkpoints/")}
    stored = {"model.safetensors", "config.json", "graph.xml", "graph.bin", "ranges.json"}
    assert {file.name for file in files} == stored
    assert {file.parent.name for file in files} >= {"dit", "unet"}


def test_the_wheel_brings_one_command(wheel: zipfile.ZipFile) -> None:
    (name,) = [name for name in wheel.namelist() if name.endswith("/entry_points.txt")]
    parser = configparser.ConfigParser()
    parser.read_string(wheel.read(name).decode())
    assert {section: dict(parser[section]) for section in parser.sections()} == {
        "console_scripts": {"stepwise": "stepwise:main"}
    }


def test_the_wheel_says_what_it_is_for(metadata: Message) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert metadata["Version"] == project["version"]
    assert metadata["Author"] == "The Stepwise developers"
    assert {line.partition(", ")[0] for line in metadata.get_all("Project-URL", [])} >= {"Repository", "Changelog"}
    systems = {line for line in metadata.get_all("Classifier", []) if line.startswith("Operating System")}
    assert systems == {"Operating System :: POSIX :: Linux", "Operating System :: MacOS"}


def test_the_command_works_in_another_folder(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    site, folder = tmp_path / "site", tmp_path / "folder"
    wheel.extractall(site)
    folder.mkdir()
    options = ["dit", "--steps", "1", "--columns", "1", "--out", "grid.png"]
    said = run_python(COMMAND, "sample", *options, cwd=folder, path=str(site))
    assert said.splitlines() == ["grid.png", str(site / "checkpoints")]
    assert (folder / "grid.png").read_bytes().startswith(b"\x89PNG")


def test_the_version_is_the_one_that_info_gives() -> None:
    assert stepwise.__version__ == version(PROJECT)
