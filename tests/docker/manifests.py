"""What Kubernetes' schemas do not see: whether the parts of rendered manifests fit each other and the service.

Every check takes the manifests of one overlay and returns complaints, one sentence each.
"""

import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import yaml

from service.settings import PREFIX, Settings

Manifest = dict[str, Any]
Manifests = list[Manifest]
Check = Callable[[Manifests], list[str]]

QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(|[KMGTPE]i|[numkMGTPE]|[eE][+-]?\d+)")
DURATION = re.compile(r"(?:\d+(?:ms|[smhd]))+")
GPU = "nvidia.com/gpu"
PROBES = ("startupProbe", "livenessProbe", "readinessProbe")
ENDPOINT_FIELDS = {
    "port",
    "path",
    "interval",
    "scrapeTimeout",
}  # of those that the operator knows, the ones used here
CLUSTER_WIDE = {"Namespace"}


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


def quantity(text: object) -> Fraction | None:
    """A number with a suffix as Kubernetes reads it; None for what is none."""
    match = QUANTITY.fullmatch(str(text))
    if match is None:
        return None
    number, suffix = match.groups()
    if suffix[:1] in ("e", "E") and len(suffix) > 1 and suffix[1] != "i":
        return Fraction(number) * Fraction(10) ** int(suffix[1:])
    if suffix.endswith("i"):
        return Fraction(number) * 1024 ** ("KMGTPE".index(suffix[0]) + 1)
    powers = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
    return Fraction(number) * Fraction(10) ** powers[suffix]


def selectors(manifests: Manifests) -> list[str]:
    """Everything that selects the pods selects by the Deployment's own labels."""
    spec = deployment(manifests)["spec"]
    wanted = spec["selector"]["matchLabels"]
    given = spec["template"]["metadata"]["labels"]
    complaints = []
    if not wanted.items() <= given.items():
        complaints.append(f"the Deployment selects {wanted}, its pods have {given}")
    chosen = {
        f"Service {item['metadata']['name']}": item["spec"]["selector"] for item in of_kind(manifests, "Service")
    }
    for kind, field in (("PodDisruptionBudget", "selector"), ("NetworkPolicy", "podSelector")):
        for item in of_kind(manifests, kind):
            chosen[f"{kind} {item['metadata']['name']}"] = item["spec"][field].get("matchLabels", {})
    for constraint in pod(manifests).get("topologySpreadConstraints", []):
        chosen[f"spread over {constraint['topologyKey']}"] = constraint["labelSelector"].get("matchLabels", {})
    complaints += [f"{who} selects {labels}, not {wanted}" for who, labels in chosen.items() if labels != wanted]
    services = of_kind(manifests, "Service")
    for monitor in of_kind(manifests, "ServiceMonitor"):
        labels = monitor["spec"]["selector"].get("matchLabels", {})
        if labels != wanted or not all(labels.items() <= item["metadata"]["labels"].items() for item in services):
            complaints.append(f"the ServiceMonitor selects {labels}, not {wanted}")
    return complaints


def namespaces(manifests: Manifests) -> list[str]:
    (home,) = [item["metadata"]["name"] for item in of_kind(manifests, "Namespace")]
    placed = {
        item["kind"]: item["metadata"].get("namespace") for item in manifests if item["kind"] not in CLUSTER_WIDE
    }
    complaints = [f"{kind} is in namespace {where}, not {home}" for kind, where in placed.items() if where != home]
    looks = [monitor["spec"].get("namespaceSelector", {}) for monitor in of_kind(manifests, "ServiceMonitor")]
    return complaints + [
        f"the ServiceMonitor does not look into {home}" for look in looks if look.get("matchNames") != [home]
    ]


def ports(manifests: Manifests) -> list[str]:
    """Every port that is named exists where it is looked for, and metrics are not for everybody."""
    own = {port["name"]: port["containerPort"] for port in container(manifests)["ports"]}
    offered = {port["name"]: port for service in of_kind(manifests, "Service") for port in service["spec"]["ports"]}
    asked = [(probe, container(manifests)[probe]["httpGet"]["port"]) for probe in PROBES]
    asked += [(f"Service port {name}", port["targetPort"]) for name, port in offered.items()]
    for policy in of_kind(manifests, "NetworkPolicy"):
        for rule in policy["spec"].get("ingress", []):
            asked += [("NetworkPolicy", port["port"]) for port in rule["ports"]]
            if not rule.get("from") and any(port["port"] != "http" for port in rule["ports"]):
                asked.append(("NetworkPolicy for everybody", "none but http"))
    complaints = [f"{who}: no container port {port}" for who, port in asked if port not in own]
    for monitor in of_kind(manifests, "ServiceMonitor"):
        names = [endpoint.get("port") for endpoint in monitor["spec"]["endpoints"]]
        complaints += [f"ServiceMonitor: no Service port {name}" for name in names if name not in offered]
    if environment(manifests).get(f"{PREFIX}METRICS_PORT") != str(own.get("metrics")):
        complaints.append(f"the container's metrics port is not {PREFIX}METRICS_PORT")
    return complaints


def resources(manifests: Manifests) -> list[str]:
    """Quantities that parse and fit each other; whole GPUs, in limits."""
    own = container(manifests)["resources"]
    limits, requests = own.get("limits", {}), own.get("requests", {})
    sizes = [volume["emptyDir"].get("sizeLimit") for volume in pod(manifests)["volumes"] if "emptyDir" in volume]
    given = [*limits.items(), *requests.items(), *(("emptyDir", size) for size in sizes)]
    complaints = [f"{name}: {value!r} is no quantity" for name, value in given if quantity(value) is None]
    if complaints:
        return complaints
    amounts = {name: quantity(value) or Fraction(0) for name, value in limits.items()}
    for name, value in requests.items():
        if name not in amounts or (quantity(value) or 0) > amounts[name]:
            complaints.append(f"{name}: {value} is requested, and not within limits")
    if amounts.get(GPU, Fraction(0)).denominator != 1 or amounts.get(GPU) == 0:
        complaints.append(f"{GPU}: {limits[GPU]} is not a whole number of GPUs")
    if GPU in requests and requests[GPU] != limits.get(GPU):
        complaints.append(f"{GPU}: requests and limits must be equal")
    if sum(quantity(size) or 0 for size in sizes) > amounts.get("ephemeral-storage", Fraction(0)):
        complaints.append("the volumes may grow beyond the limit of ephemeral-storage, which evicts the pod")
    if Fraction(environment(manifests).get(f"{PREFIX}THREADS", 0)) != amounts.get("cpu"):
        complaints.append(f"{PREFIX}THREADS is not the number of cores")
    return complaints


def devices(manifests: Manifests) -> list[str]:
    """A pod has a GPU, a toleration and a node to go to exactly when the service is to use one."""
    own = pod(manifests)
    wants = environment(manifests).get(f"{PREFIX}DEVICE") == "cuda"
    keys = [toleration.get("key") for toleration in own.get("tolerations", [])]
    signs = {
        "a GPU in limits": GPU in container(manifests)["resources"].get("limits", {}),
        "a toleration of GPU nodes": GPU in keys,
        "an affinity to GPU nodes": "nodeAffinity" in own.get("affinity", {}),
    }
    return [f"{sign}: {has}, but the device is cuda: {wants}" for sign, has in signs.items() if has != wants]


def replicas(manifests: Manifests) -> int:
    """The fewest pods that are meant to run."""
    scalers = [item["spec"].get("minReplicas", 1) for item in of_kind(manifests, "HorizontalPodAutoscaler")]
    scalers += [item["spec"].get("minReplicaCount", 0) for item in of_kind(manifests, "ScaledObject")]
    return min(scalers, default=deployment(manifests)["spec"].get("replicas", 1))


def disruption(manifests: Manifests) -> list[str]:
    (budget,) = of_kind(manifests, "PodDisruptionBudget")
    given = [field for field in ("minAvailable", "maxUnavailable") if field in budget["spec"]]
    if len(given) != 1:
        return [f"the disruption budget has {given}, and must have one of them"]
    value = budget["spec"][given[0]]
    if given == ["maxUnavailable"] and value in (0, "0%"):
        return ["the disruption budget lets no node be drained"]
    if given == ["minAvailable"] and (value == "100%" or isinstance(value, int) and value >= replicas(manifests)):
        return [f"minAvailable {value} of {replicas(manifests)} pods lets no node be drained"]
    return []


def references(manifests: Manifests) -> list[str]:
    """What is named exists, or may be missing."""
    there = {(item["kind"], item["metadata"]["name"]) for item in manifests}
    named = list(_references(container(manifests)))
    named.append(("ServiceAccount", pod(manifests).get("serviceAccountName", "default")))
    for kind in ("HorizontalPodAutoscaler", "ScaledObject"):
        for item in of_kind(manifests, kind):
            target = item["spec"]["scaleTargetRef"]
            named.append((target.get("kind", "Deployment"), target["name"]))
    complaints = [f"there is no {kind} {name}" for kind, name in named if (kind, name) not in there]
    volumes = {volume["name"] for volume in pod(manifests)["volumes"]}
    mounted = {mount["name"] for mount in container(manifests)["volumeMounts"]}
    return complaints + [f"the volume {name} is not both declared and mounted" for name in volumes ^ mounted]


def _references(own: Manifest) -> Iterator[tuple[str, str]]:
    kinds = {"configMapRef": "ConfigMap", "configMapKeyRef": "ConfigMap"}
    kinds |= {"secretRef": "Secret", "secretKeyRef": "Secret"}
    for source in [*own.get("envFrom", []), *(item.get("valueFrom", {}) for item in own.get("env", []))]:
        for field, value in source.items():
            if field in kinds and not value.get("optional"):
                yield kinds[field], value["name"]


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


def grace(manifests: Manifests, answer_seconds: float, join_seconds: float) -> list[str]:
    """The pod is given the time that it takes to drain; the last answers leave on one port after the other."""
    hook = container(manifests).get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["sleep", 0])
    default = str(Settings.model_fields["drain_seconds"].default)
    drain = float(environment(manifests).get(f"{PREFIX}DRAIN_SECONDS", default))
    sleep = float(hook[1])
    needed = sleep + drain + 2 * answer_seconds + join_seconds
    granted = pod(manifests).get("terminationGracePeriodSeconds", 30)
    complaints = [] if granted >= needed else [f"the pod has {granted} s to end and may need {needed:g} s"]
    if hook[0] != "sleep" or sleep < 1:
        complaints.append("no sleep in preStop: requests still arrive when the port is closed")
    return complaints


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


def monitors(manifests: Manifests) -> list[str]:
    """Its kind has no schema here: known fields, and durations that are some."""
    endpoints = [item for monitor in of_kind(manifests, "ServiceMonitor") for item in monitor["spec"]["endpoints"]]
    complaints = [
        f"ServiceMonitor: unknown field {field}" for item in endpoints for field in item.keys() - ENDPOINT_FIELDS
    ]
    values = [item[field] for item in endpoints for field in ("interval", "scrapeTimeout") if field in item]
    return complaints + [
        f"ServiceMonitor: {value} is no duration" for value in values if not DURATION.fullmatch(value)
    ]
