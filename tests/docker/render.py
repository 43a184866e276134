"""The Kubernetes manifests as kubectl renders them, which asks no cluster."""

import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
import yaml

from tests.docker.manifests import Manifests, read

K8S = Path(__file__).resolve().parents[2] / "docker" / "k8s"
OVERLAYS = ("cpu", "gpu", "hpa", "keda")
ADAPTER = yaml.safe_load((K8S / "overlays" / "hpa" / "adapter-values.yaml").read_text())["rules"]["custom"]


@cache
def kustomize(folder: Path) -> str:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("needs kubectl")
    done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    return done.stdout


def rendered(overlay: str) -> Manifests:
    return read(kustomize(K8S / "overlays" / overlay))
