"""The images' packages are locked with hashes, and the locks are those of constraints.txt."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.docker import dockerfile
from tests.docker.dockerfile import ROOT, TARGETS

PROJECT = dockerfile.PROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]

each_target = pytest.mark.parametrize("target", TARGETS)


def locked(text: str) -> dict[str, tuple[str, list[str]]]:
    """Version without its local part, and hashes, by package."""
    found = {}
    for entry in re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)).splitlines():
        name, _, rest = entry.partition("==")
        found[canonicalize_name(name)] = (rest.split()[0].partition("+")[0], re.findall(r"--hash=(\S+)", rest))
    return found


def lock_text(target: str) -> str:
    return (ROOT / f"docker/locks/{target}.txt").read_text()


def lock(target: str) -> dict[str, tuple[str, list[str]]]:
    return locked(lock_text(target))


def names(*groups: list[str]) -> set[str]:
    found = [Requirement(line).name for group in groups for line in group]
    return {canonicalize_name(name) for name in found if name != PROJECT["name"]}


def needed(target: str) -> set[str]:
    """Direct dependencies of an image on Linux."""
    extras = ("otel", "cpu") if target == "cpu" else ("otel",)
    return names(PROJECT["dependencies"], *(EXTRAS[extra] for extra in extras))


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
    assert needed(target) - set(versions) == ({"triton"} if target == "cpu" else set())


def test_only_the_image_for_a_gpu_has_what_a_gpu_needs() -> None:
    builds = [re.findall(r"^torch==\S+?(\+\w+)? ", lock_text(target), re.MULTILINE) for target in TARGETS]
    assert builds == [["+cpu"], [""]]
    gpu = {name for name in lock("cuda") if name.startswith("nvidia-") or name == "triton"}
    assert len(gpu) > 10
    assert set(lock("cpu")) & gpu == set()
    assert set(lock("cpu")) - set(lock("cuda")) == {"openvino", "openvino-telemetry"}


@each_target
def test_what_trains_and_tests_is_not_in_the_images(target: str) -> None:
    unwanted = names(EXTRAS["train"], EXTRAS["dev"])
    assert {"matplotlib", "pytest"} <= unwanted
    assert unwanted & set(lock(target)) == set()


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


def test_the_audit_fails_where_its_database_cannot_be_reached(tmp_path: Path) -> None:
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
