"""Where rendered manifests say what the service and its image say: settings, time to end, probes, user.

Kubernetes' schemas (kubernetes-validate) hold the rest. Every check takes the manifests of one overlay and returns
complaints, one sentence each.
"""

from collections.abc import Callable
from typing import Any

import yaml

from service.settings import PREFIX, Settings
from service.supervisor import ANSWER_SECONDS

Manifest = dict[str, Any]
Manifests = list[Manifest]
Check = Callable[[Manifests], list[str]]

PROBES = ("startupProbe", "livenessProbe", "readinessProbe")
USER = 10001  # of the image


def read(text: str) -> Manifests:
    return [manifest for manifest in yaml.safe_load_all(text) if manifest]


def of_kind(manifests: Manifests, kind: str) -> Manifests:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def deployment(manifests: Manifests) -> Manifest:
    """The only one there is."""
    (found,) = of_kind(manifests, "Deployment")
    return found


def pod(manifests: Manifests) -> Manifest:
    return deployment(manifests)["spec"]["template"]["spec"]


def container(manifests: Manifests) -> Manifest:
    (found,) = pod(manifests)["containers"]
    return found


def environment(manifests: Manifests) -> dict[str, str]:
    """What the container is given from the manifests: of Secrets, only the names are known."""
    data = {item["metadata"]["name"]: item.get("data", {}) for item in of_kind(manifests, "ConfigMap")}
    sources = [source["configMapRef"]["name"] for source in container(manifests).get("envFrom", [])]
    values = {key: value for name in sources for key, value in data.get(name, {}).items()}
    return values | {item["name"]: item.get("value", "") for item in container(manifests).get("env", [])}


def settings(manifests: Manifests) -> list[str]:
    """Every DIFFUSION_ variable is a setting, and no other comes in from the cluster."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    given = [name for name in environment(manifests) if name.startswith(PREFIX)]
    complaints = [f"{name} is no setting" for name in given if name not in known]
    if pod(manifests).get("enableServiceLinks", True):
        complaints.append(
            f"a Service of the namespace may become a {PREFIX} variable: enableServiceLinks is not false"
        )
    return complaints


def grace(manifests: Manifests) -> list[str]:
    """The pod is given the time that it takes to drain; the last answers leave on one port after the other."""
    hook = container(manifests).get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["sleep", 0])
    default = str(Settings.model_fields["drain_seconds"].default)
    drain = float(environment(manifests).get(f"{PREFIX}DRAIN_SECONDS", default))
    sleep = float(hook[1])
    needed = sleep + drain + 2 * ANSWER_SECONDS
    granted = pod(manifests).get("terminationGracePeriodSeconds", 30)
    complaints = [] if granted >= needed else [f"the pod has {granted} s to end and may need {needed:g} s"]
    if hook[0] != "sleep" or sleep < 1:
        complaints.append("no sleep in preStop: requests still arrive when the port is closed")
    return complaints


def workers(manifests: Manifests) -> list[str]:
    """Beside a GPU at most one for every two cores of the limit; the service would count those of the node."""
    given = environment(manifests)
    if given[f"{PREFIX}DEVICE"] != "cuda":
        return []  # one
    cores = int(container(manifests)["resources"]["limits"]["cpu"])
    wanted = given.get(f"{PREFIX}HTTP_WORKERS")
    return [] if wanted and int(wanted) <= cores / 2 else [f"{wanted} workers on {cores} cores"]


def probes(manifests: Manifests) -> list[str]:
    """Liveness asks for the engine alone, and a slow start is given up by the probe before the rollout is."""
    own = container(manifests)
    paths = [own[probe]["httpGet"]["path"] for probe in PROBES]
    complaints = [] if paths == ["/readyz", "/livez", "/readyz"] else [f"the probes ask {paths}"]
    startup = own["startupProbe"]
    granted = startup["periodSeconds"] * startup["failureThreshold"]
    if granted >= deployment(manifests)["spec"].get("progressDeadlineSeconds", 600):
        complaints.append(f"the rollout is given up before a start-up of {granted} s is")
    return complaints


def restricted(manifests: Manifests) -> list[str]:
    """Complaints about what the namespace's own label would refuse, and a little more."""
    own, spec = container(manifests), pod(manifests)
    inner, outer = own.get("securityContext", {}), spec.get("securityContext", {})
    namespaces = [item["metadata"]["labels"] for item in of_kind(manifests, "Namespace")]
    wanted = {
        "the namespace enforces restricted": [
            labels.get("pod-security.kubernetes.io/enforce") for labels in namespaces
        ]
        == ["restricted"],
        f"runs as {USER}, not as root": outer.get("runAsNonRoot") is True and outer.get("runAsUser") == USER,
        "the root file system is read-only": inner.get("readOnlyRootFilesystem") is True,
        "no privilege can be gained": inner.get("allowPrivilegeEscalation") is False,
        "all capabilities are dropped": inner.get("capabilities") == {"drop": ["ALL"]},
        "seccomp is RuntimeDefault": outer.get("seccompProfile") == {"type": "RuntimeDefault"},
        "no token of the API server": spec.get("automountServiceAccountToken") is False,
        "nothing of the host": not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(),
        "volumes are empty folders with a limit": all(
            "sizeLimit" in volume.get("emptyDir", {}) for volume in spec["volumes"]
        ),
        "Triton's cache can be written": any(
            environment(manifests).get("TRITON_CACHE_DIR", "").startswith(f"{mount['mountPath']}/")
            for mount in own["volumeMounts"]
        ),
    }
    return [f"not so: {name}" for name, holds in wanted.items() if not holds]
