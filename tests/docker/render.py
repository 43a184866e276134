"""The Kubernetes manifests as kubectl renders them, which asks no cluster."""

import json
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
import yaml

from tests.docker.manifests import Manifests, read

K8S = Path(__file__).resolve().parents[2] / "docker" / "k8s"
MINOR = 21  # the first kubectl 1.x with kustomize components; Debian 12 has 1.20
OVERLAYS = ("cpu", "gpu", "hpa", "keda")
ADAPTER = yaml.safe_load((K8S / "overlays" / "hpa" / "adapter-values.yaml").read_text())["rules"]["custom"]


@cache
def lack() -> str:
    """What keeps this machine from rendering; empty if nothing does."""
    if shutil.which("kubectl") is None:
        return "needs kubectl"
    command = ["kubectl", "version", "--client", "-o", "json"]
    version = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["clientVersion"]
    minor = int("".join(filter(str.isdigit, version["minor"])))  # "32" or "32+"
    return "" if minor >= MINOR else f"needs kubectl 1.{MINOR} or newer"


@cache
def kustomize(folder: Path) -> str:
    if reason := lack():
        pytest.skip(reason)
    command = ["kubectl", "kustomize", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    return done.stdout


def rendered(overlay: str) -> Manifests:
    return read(kustomize(K8S / "overlays" / overlay))
