"""The Kubernetes manifests as kubectl renders them, which asks no cluster."""

import json
import re
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
def kustomize(folder: Path) -> str:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("needs kubectl")
    version = subprocess.run([kubectl, "version", "--client", "-o", "json"], capture_output=True, check=True).stdout
    if int(re.match(r"\d+", json.loads(version)["clientVersion"]["minor"])[0]) < MINOR:  # pyright: ignore[reportOptionalSubscript]
        pytest.skip(f"needs kubectl 1.{MINOR} or newer")
    done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    return done.stdout


def rendered(overlay: str) -> Manifests:
    return read(kustomize(K8S / "overlays" / overlay))
