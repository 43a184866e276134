"""docs/api.md against the service: its tables, and its examples as they are written."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from models.samplers import SAMPLERS
from service.local import create_app
from service.settings import Settings
from service.web.http1 import MAX_HEAD
from service.web.images import MEDIA_TYPES
from service.web.middleware import MAX_BODY, MAX_FILES_BODY, MAX_QUERY
from service.web.routes.edits import FIELD_NAMES as EDIT_NAMES
from service.web.routes.inference_v2 import PARAMETERS
from service.web.routes.openai import FIELD_NAMES as OPENAI_NAMES
from service.web.routes.openai import own_limits
from service.web.schemas import FIELD_NAMES, allowed, limits
from tests.service.conftest import Running, running
from tests.service.networks import simulated
from tests.service.process import ROOT
from tests.skips import needs

PAGE = (ROOT / "docs/api.md").read_text()
ADMIN = "an-admin-key-for-this-test"
LIMITS = limits(Settings.model_fields["max_steps"].default, Settings.model_fields["max_images"].default)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The shipped models' names, sizes and classes; nothing is computed."""
    folder, staged = ROOT / "checkpoints/dit", tmp_path_factory.mktemp("checkpoints")
    shutil.copytree(folder, staged / "staged/dit-2")
    models = {"dit": simulated(folder, 0.1)}
    settings = Settings(models=models, device="cpu", checkpoints=staged, admin_key=SecretStr(ADMIN))
    with running(create_app(settings)) as server:
        yield server


def table(heading: str) -> list[list[str]]:
    """The rows of the table under these column titles, as lists of cells."""
    lines = PAGE[PAGE.index(f"\n{heading}\n") + 1 :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def code(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_table_of_fields_has_every_field_and_its_range() -> None:
    rows = {code(name)[0]: text for name, text, _ in table("| field | allowed | default |")}
    assert list(rows) == FIELD_NAMES
    for name, limit in LIMITS.items():
        assert rows[name].startswith(allowed(limit)), name
    assert code(rows["sampler"].partition(";")[0]) == list(SAMPLERS)
    assert code(rows["format"]) == list(MEDIA_TYPES)


def test_the_table_of_formats_has_every_media_type() -> None:
    rows = [(code(name), code(kind)[0]) for name, kind, _ in table("| format | media type | body |")]
    assert {name[0]: kind for name, kind in rows if name} == MEDIA_TYPES


def test_the_table_of_openai_has_every_field() -> None:
    rows = {name: text for names, text in table("| field | meaning |") for name in code(names)}
    assert sorted(rows) == sorted(OPENAI_NAMES)
    assert rows["output_compression"].startswith(allowed(own_limits(LIMITS)["output_compression"]))


def test_the_table_of_edits_has_every_field() -> None:
    rows = [code(name)[0] for name, _ in table("| field of a form | meaning |")]
    assert sorted(rows) == sorted(set(EDIT_NAMES) - set(OPENAI_NAMES))


def test_every_parameter_of_the_inference_protocol_is_named() -> None:
    [listed] = re.findall(r"^Parameters are (.*?), as for", PAGE, re.DOTALL | re.MULTILINE)
    assert tuple(code(listed)) == PARAMETERS


def test_the_sizes_are_those_of_the_code() -> None:
    assert f"{MAX_FILES_BODY // 1024**2} MiB" in PAGE
    for size, where in ((MAX_BODY, "413"), (MAX_QUERY, "414"), (MAX_HEAD, "431")):
        [row] = [text for status, text in table("| status | when |") if status == where]
        assert f"{size // 1024} KiB" in row


def test_every_route_is_named(live: Running) -> None:
    paths = live.client.get("/openapi.json").json()["paths"]
    routes = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    named = {route.replace("/M", "/{model}") for route in re.findall(r"`((?:GET|POST|PUT) /[\w/.]*)`", PAGE)}
    versions = {route for route in routes if "{version}" in route}
    assert named - {"GET /openapi.json"} == routes - versions
    assert {re.sub("/versions/{version}", "", route) for route in versions} <= routes


@needs("curl")
@pytest.mark.parametrize("number", range(len(blocks("bash"))))
def test_the_commands_run(live: Running, tmp_path: Path, number: int) -> None:
    commands = blocks("bash")[number].replace("http://localhost:8000", live.url).replace("curl ", "curl -sSf ")
    environment = os.environ | {"DIFFUSION_ADMIN_KEY": ADMIN}
    command = ["sh", "-ec", commands]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    if pictures := re.findall(r"-o (\w+\.png)", commands):
        assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
    elif "-X PUT" in commands:
        assert '"version":2' in ended.stdout
    else:
        assert ended.stdout.count("event: image_generation.partial_image") == 8


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_the_programs_run(live: Running, tmp_path: Path, number: int) -> None:
    program = blocks("python")[number].replace("localhost:8000", live.url.removeprefix("http://"))
    for package in re.findall(r"^(?:from|import) (openai|tritonclient)", program, re.MULTILINE):
        pytest.importorskip(package)
        assert re.search(rf"`\.venv/bin/pip install '?{package}", PAGE)
    picture = live.client.post("/generate?model=dit&class=3&format=png").content
    (tmp_path / "three.png").write_bytes(picture)
    steps = live.client.post("/generate?model=dit&class=3&n=4&steps=20&format=npz").content
    (tmp_path / "steps.npz").write_bytes(steps)
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout
