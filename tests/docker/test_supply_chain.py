"""The images' packages are locked with hashes, and the locks are those of constraints.txt."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
TARGETS = ("cpu", "cuda")

each_target = pytest.mark.parametrize("target", TARGETS)


def locked(text: str) -> dict[str, tuple[str, list[str]]]:
    """Version without its local part, and hashes, by package."""
    found = {}
    for entry in re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)).splitlines():
        name, _, rest = entry.partition("==")
        found[canonicalize_name(name)] = (rest.split()[0].partition("+")[0], re.findall(r"--hash=(\S+)", rest))
    return found


def lock(target: str) -> dict[str, tuple[str, list[str]]]:
    return locked((ROOT / f"docker/locks/{target}.txt").read_text())


def needed(target: str) -> set[str]:
    """Direct dependencies of an image on Linux."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = ("otel", "cpu") if target == "cpu" else ("otel",)
    lines = project["dependencies"] + [line for extra in extras for line in project["optional-dependencies"][extra]]
    return {canonicalize_name(Requirement(line).name) for line in lines}


@each_target
def test_every_package_has_hashes(target: str) -> None:
    for name, (version, hashes) in lock(target).items():
        assert version, name
        assert hashes, name
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", each) for each in hashes), name


@each_target
def test_versions_are_those_of_the_constraints(target: str) -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split(";")[0].strip().split("==") for line in lines if "==" in line and line[0] != "#")
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    versions = {name: version for name, (version, _) in lock(target).items()}
    assert {n: v for n, v in versions.items() if n in pins} == {n: v for n, v in pins.items() if n in versions}
    assert needed(target) - {"triton"} <= set(versions)


def test_only_the_image_for_a_gpu_has_what_a_gpu_needs() -> None:
    gpu = {name for name in lock("cuda") if name.startswith("nvidia-") or name == "triton"}
    assert len(gpu) > 10
    assert set(lock("cpu")) & gpu == set()
    assert set(lock("cpu")) - set(lock("cuda")) == {"openvino", "openvino-telemetry"}


@each_target
def test_what_trains_and_tests_is_not_in_the_images(target: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["optional-dependencies"]["train"] + project["optional-dependencies"]["dev"]
    names = {canonicalize_name(Requirement(line).name) for line in lines} - {project["name"]}
    assert names & set(lock(target)) == set()


def test_a_lock_is_read() -> None:
    text = (
        "# comment\nA_b==1.0 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\nc==2+cpu \\\n    --hash=sha256:cc\n"
    )
    assert locked(text) == {"a-b": ("1.0", ["sha256:aa", "sha256:bb"]), "c": ("2", ["sha256:cc"])}


@each_target
def test_the_bill_of_materials_lists_every_package(target: str, tmp_path: Path) -> None:
    command = [Path(sys.executable).with_name("cyclonedx-py"), "requirements", f"docker/locks/{target}.txt"]
    subprocess.run([*command, "-o", tmp_path / "sbom.json"], cwd=ROOT, check=True, timeout=120)
    bill = json.loads((tmp_path / "sbom.json").read_text())
    assert bill["bomFormat"] == "CycloneDX"
    assert {canonicalize_name(component["name"]) for component in bill["components"]} == set(lock(target))


def test_the_audit_says_when_it_learnt_nothing(tmp_path: Path) -> None:
    """A pip-audit that is content with everything, as the real one is where it cannot reach its database."""
    content = tmp_path / "pip-audit"
    content.write_text("#!/bin/sh\nexit 0\n")
    content.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    ended = subprocess.run(["docker/audit.sh"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 2
    assert "cannot be reached" in ended.stderr


def test_the_workflow_runs_what_ci_runs_and_pushes_nothing() -> None:
    text = (ROOT / ".github/workflows/ci.yml").read_text()
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {"contents": "read"}
    steps = {job: [step.get("run", "") for step in body["steps"]] for job, body in workflow["jobs"].items()}
    assert "bash .ci/run" in steps["test"]
    built = {entry["target"] for entry in workflow["jobs"]["image"]["strategy"]["matrix"]["include"]}
    assert built == set(TARGETS)
    assert "push " not in text.replace("push:", "")
    assert "secrets." not in text
