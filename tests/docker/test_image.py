"""What can be known of the image without an engine; docker/check-image.sh builds and runs it."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.docker.dockerfile import (
    ARGUMENTS,
    PROJECT,
    ROOT,
    STAGES,
    TARGETS,
    environment,
    health_check,
    seconds,
    steps,
)


def copied() -> list[str]:
    """Every path that is taken from the project."""
    copies = [rest.split() for stage in STAGES.values() for word, rest in stage.steps if word == "COPY"]
    own = [[word for word in copy if not word.startswith("--")] for copy in copies if "--from=" not in copy[0]]
    return [source for words in own for source in words[:-1]]


def sent(path: str) -> bool:
    """Whether .dockerignore lets it through: the last pattern that fits it, or a folder above it, decides."""
    kept = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = re.escape(line.removeprefix("!")).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
        if re.fullmatch(f"{pattern}(/.*)?", path):
            kept = line.startswith("!")
    return kept


def test_both_targets_are_there_and_every_stage_is_used() -> None:
    assert list(STAGES)[-1] == "cuda"  # what a build without --target makes
    used = {stage.parent for stage in STAGES.values()} | set(TARGETS)
    used |= {
        name for stage in STAGES.values() for _, rest in stage.steps for name in re.findall(r"--from=(\S+)", rest)
    }
    assert set(STAGES) <= used
    assert used - set(STAGES) == {"${BASE}${BASE_DIGEST}"}


def test_the_base_is_named_exactly() -> None:
    assert ARGUMENTS["BASE_DIGEST"] == ""  # the builder names it: this project has checked no digest
    version = re.fullmatch(r"docker\.io/library/python:(\d+\.\d+)-slim-\w+", ARGUMENTS["BASE"])
    assert version
    assert PROJECT["project"]["requires-python"] == f">={version[1]}"


@pytest.mark.parametrize("target", TARGETS)
def test_it_runs_as_a_user_without_rights(target: str) -> None:
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", steps(target, "USER")[-1])
    assert STAGES[target].steps[-1][0] == "USER"  # no later step runs as root


@pytest.mark.parametrize("target", TARGETS)
def test_it_gets_the_signals_itself(target: str) -> None:
    assert json.loads(steps(target, "ENTRYPOINT")[-1]) == ["python", "run.py", "serve"]
    assert steps(target, "STOPSIGNAL") == ["SIGTERM"]


@pytest.mark.parametrize("target", TARGETS)
def test_it_writes_to_tmp_only(target: str) -> None:
    values = environment(target)
    assert (values["HOME"], values["TRITON_CACHE_DIR"]) == ("/tmp", "/tmp/triton")
    assert values["PYTHONDONTWRITEBYTECODE"] == "1"


@pytest.mark.parametrize("target", TARGETS)
def test_a_process_starts_no_thread_for_each_core_of_the_machine(target: str) -> None:
    counting = "import numpy, os; print(len(os.listdir('/proc/self/task')))"
    given = os.environ | {"OPENBLAS_NUM_THREADS": environment(target)["OPENBLAS_NUM_THREADS"]}
    counted = subprocess.run([sys.executable, "-c", counting], env=given, capture_output=True, check=True)
    assert int(counted.stdout) == 1


@pytest.mark.parametrize("target", TARGETS)
def test_labels_say_what_it_is(target: str) -> None:
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', steps(target, "LABEL")[-1]))
    assert set(labels) == {"title", "description", "licenses", "version", "revision"}
    assert labels["title"] == PROJECT["project"]["name"]
    assert labels["licenses"] == PROJECT["project"]["license"]


def test_what_is_copied_exists_and_travels() -> None:
    assert len(copied()) > 8
    assert [path for path in copied() if not (ROOT / path).exists() or not sent(path)] == []
    setuptools = PROJECT["tool"]["setuptools"]
    allowed = {"LICENSE", "README.md", "constraints.txt", "docker", "pyproject.toml"}
    allowed |= set(setuptools["packages"]) | {f"{name}.py" for name in setuptools["py-modules"]}
    assert {Path(path).parts[0] for path in copied()} <= allowed


def test_every_package_is_copied() -> None:
    setuptools = PROJECT["tool"]["setuptools"]
    wanted = {name.partition(".")[0] for name in setuptools["packages"]}
    wanted |= {f"{name}.py" for name in setuptools["py-modules"]}
    assert wanted <= set(copied())


@pytest.mark.parametrize(
    ("path", "travels"),
    [
        ("service/web/static/index.html", True),
        ("checkpoints/dit/model.safetensors", True),
        ("checkpoints/dit/graph.xml", True),
        ("checkpoints/dit/graph.bin", True),
        ("docker/healthcheck.py", True),
        ("docker/locks/cpu.txt", True),
        ("checkpoints/dit/loss.csv", False),
        ("docker/compose.yaml", False),
        ("service/web/routes/__pycache__/ops.cpython-311.pyc", False),
        ("tests/conftest.py", False),
        ("docs/samples.png", False),
        ("runs/dit/state.pt", False),
        (".git/config", False),
        (".venv/bin/python", False),
        (".env", False),
    ],
)
def test_what_travels_to_the_builder(path: str, travels: bool) -> None:
    assert sent(path) is travels


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_locked_is_installed(target: str) -> None:
    (command,) = (rest for word, rest in STAGES[f"dependencies-{target}"].steps if word == "RUN")
    assert f"--require-hashes -r {target}.txt" in command


@pytest.mark.parametrize("target", TARGETS)
def test_dependencies_come_before_sources(target: str) -> None:
    """An edit of the sources must leave the layers of several GB as they are."""
    copies = [rest.split()[0] for word, rest in STAGES[target].steps if word == "COPY"]
    assert copies == [f"--from=dependencies-{target}", "checkpoints", "--from=project"]
    assert steps(f"dependencies-{target}", "COPY") == [f"docker/locks/{target}.txt ./"]
    assert [rest.split()[-2] for rest in steps("runtime", "COPY")] == ["docker/healthcheck.py"]


@pytest.mark.parametrize(("tool", "file"), [("hadolint", "Dockerfile"), ("shellcheck", "docker/check-image.sh")])
def test_linters_find_nothing(tool: str, file: str) -> None:
    found = shutil.which(tool, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if not found:
        pytest.skip(f"needs {tool}")
    checked = subprocess.run([found, file], cwd=ROOT, capture_output=True, text=True)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def load_health_check() -> Any:
    spec = importlib.util.spec_from_file_location("healthcheck", ROOT / "docker" / "healthcheck.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def answering(request: pytest.FixtureRequest) -> Iterator[int]:
    """The port of a server that answers with the given status."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(request.param if self.path == "/livez" else 404)
            self.end_headers()
            self.wfile.write(b"the engine has stopped")

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.mark.parametrize(
    ("answering", "reason"), [(200, ""), (503, "503: the engine has stopped")], indirect=["answering"]
)
def test_the_health_check_tells_the_reason(answering: int, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load_health_check()
    monkeypatch.setattr(module, "PORT", answering)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert module.check() == reason


@pytest.mark.parametrize("target", TARGETS)
def test_the_health_check_asks_where_the_service_listens(target: str) -> None:
    module, (options, command) = load_health_check(), health_check(target)
    arguments = json.loads(steps(target, "CMD")[-1])
    assert arguments[arguments.index("--port") + 1] == str(module.PORT) == steps(target, "EXPOSE")[-1]
    assert arguments[arguments.index("--host") + 1] == "0.0.0.0"
    assert seconds(options["timeout"]) > module.SECONDS
    (target_path,) = (rest.split()[-1] for rest in steps(target, "COPY") if "docker/healthcheck.py" in rest)
    assert command == ["python", "-IS", target_path]
