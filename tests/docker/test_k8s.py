"""The Kubernetes manifests, as kubectl renders them: they fit the schemas, each other, and the service."""

import copy
import json
import re
import shutil
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest

from service.app import create_app
from service.engine.thread import JOIN_SECONDS
from service.middleware import MAX_BODY
from service.server import ANSWER_SECONDS
from service.settings import PREFIX, load_settings
from tests.docker import hardening, manifests, scaling
from tests.docker.manifests import Check, Manifests, container, deployment, environment, of_kind, pod
from tests.docker.render import ADAPTER, K8S, OVERLAYS, kustomize, rendered
from tests.service.conftest import running, tiny_settings

ROOT = K8S.parents[1]
NGINX_IDLE_SECONDS = 60  # how long it keeps an idle connection to a server
TRACED = "cpu with every component"  # no overlay of its own: components are what an operator adds

CHECKS: dict[str, Check] = {
    "selectors": manifests.selectors,
    "namespaces": manifests.namespaces,
    "ports": manifests.ports,
    "resources": manifests.resources,
    "devices": manifests.devices,
    "disruption": manifests.disruption,
    "references": manifests.references,
    "settings": manifests.settings,
    "grace": partial(manifests.grace, answer_seconds=ANSWER_SECONDS, join_seconds=JOIN_SECONDS),
    "probes": manifests.probes,
    "monitors": manifests.monitors,
    "hardening": hardening.restricted,
    "egress": hardening.egress,
    "bounds": scaling.bounds,
    "targets": scaling.targets,
    "measured": partial(scaling.measured, rules=ADAPTER, series=scaling.exported()),
}


@pytest.fixture(scope="session")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The overlay cpu with every component, in a copy of the tree."""
    folder = tmp_path_factory.mktemp("k8s") / "k8s"
    shutil.copytree(K8S, folder)
    overlay = folder / "overlays" / "cpu"
    with (overlay / "kustomization.yaml").open("a") as file:
        file.write("components:\n")
        file.writelines(f"  - ../../components/{part.name}\n" for part in sorted((K8S / "components").iterdir()))
    return overlay


@pytest.fixture(params=[*OVERLAYS, TRACED])
def text(request: pytest.FixtureRequest, traced: Path) -> str:
    return kustomize(traced if request.param == TRACED else K8S / "overlays" / request.param)


def test_every_overlay_is_tested() -> None:
    assert sorted(folder.name for folder in (K8S / "overlays").iterdir()) == sorted(OVERLAYS)


@pytest.mark.parametrize("check", CHECKS)
def test_the_parts_fit_each_other(text: str, check: str) -> None:
    assert CHECKS[check](manifests.read(text)) == []


@cache  # overlays have most of their manifests in common
def schema_complaint(manifest: str, version: str) -> str:
    """Of the API server's own schemas, which know no custom resources; the manifest is JSON."""
    validator = pytest.importorskip("kubernetes_validate", reason="needs the package kubernetes-validate")
    try:
        validator.validate(json.loads(manifest), version, strict=True)
    except validator.SchemaNotFoundError as error:
        return "" if error.kind in ("ServiceMonitor", "ScaledObject") else str(error.message)
    except validator.ValidationError as error:
        return str(error.message)
    return ""


def strict(found: Manifests, version: str) -> list[str]:
    return [text for text in (schema_complaint(json.dumps(item), version) for item in found) if text]


def test_the_schemas_of_every_version_are_met(text: str) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="needs the package kubernetes-validate")
    found, versions = manifests.read(text), validator.utils.all_versions()
    assert versions
    assert {version: strict(found, version) for version in versions} == {version: [] for version in versions}


def test_all_settings_load_together(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = environment(manifests.read(text))
    for name in given:
        if name.startswith(PREFIX):
            monkeypatch.setenv(name, given[name])
    monkeypatch.setenv("DIFFUSION_API_KEYS", "a-key-from-the-secret")
    loaded = load_settings()
    assert loaded.metrics_port == 9090
    assert loaded.log_format == "json"
    assert loaded.keep_alive_seconds > NGINX_IDLE_SECONDS
    assert loaded.otel is (f"{PREFIX}OTEL" in given)


def test_the_ingress_has_tls_and_lets_streams_through(traced: Path) -> None:
    found = manifests.read(kustomize(traced))
    (ingress,), (service,) = of_kind(found, "Ingress"), of_kind(found, "Service")
    annotations = ingress["metadata"]["annotations"]
    assert annotations["nginx.ingress.kubernetes.io/proxy-buffering"] == "off"
    assert annotations["nginx.ingress.kubernetes.io/proxy-body-size"] == f"{MAX_BODY // 1024}k"
    assert annotations["nginx.ingress.kubernetes.io/force-ssl-redirect"] == "true"
    (rule,) = ingress["spec"]["rules"]
    assert [rule["host"]] == [host for entry in ingress["spec"]["tls"] for host in entry["hosts"]]
    (path,) = rule["http"]["paths"]
    target = path["backend"]["service"]
    assert target["name"] == service["metadata"]["name"]
    assert target["port"]["name"] in {port["name"] for port in service["spec"]["ports"]} - {"metrics"}


def test_the_probes_are_answered_by_the_service(checkpoints: Path) -> None:
    own = container(rendered("cpu"))
    paths = {own[probe]["httpGet"]["path"] for probe in manifests.PROBES}
    with running(create_app(tiny_settings(checkpoints, api_keys="a-key-that-probes-lack"))) as live:
        assert {path: live.client.get(path).status_code for path in paths} == dict.fromkeys(paths, 200)


def test_the_image_and_the_job_are_those_of_the_other_files() -> None:
    images = {overlay: container(rendered(overlay))["image"] for overlay in ("cpu", "gpu")}
    targets = re.findall(r"^FROM runtime AS (\w+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert set(images.values()) == {f"stepwise:{target}" for target in targets}
    (service,) = of_kind(rendered("hpa"), "Service")
    assert (
        f'job="{service["metadata"]["labels"]["app.kubernetes.io/name"]}"'
        in (ROOT / "docker" / "prometheus" / "rules.yml").read_text()
    )


Break = Callable[[Manifests], Any]


def setting(**values: str) -> Break:
    return lambda found: [item["data"].update(values) for item in of_kind(found, "ConfigMap")]


def spec(kind: str, **values: Any) -> Break:
    return lambda found: [item["spec"].update(values) for item in of_kind(found, kind)]


def own(**values: Any) -> Break:
    return lambda found: container(found).update(values)


def limit(**values: str) -> Break:
    return lambda found: container(found)["resources"]["limits"].update(values)


def probe(**values: Any) -> Break:
    return lambda found: container(found)["livenessProbe"]["httpGet"].update(values)


def labels(**values: str) -> Break:
    return lambda found: deployment(found)["spec"]["template"]["metadata"].update(labels=values)


def endpoint(**values: str) -> Break:
    return lambda found: [item["spec"]["endpoints"][0].update(values) for item in of_kind(found, "ServiceMonitor")]


def backlog(**values: Any) -> Break:
    return lambda found: of_kind(found, "HorizontalPodAutoscaler")[0]["spec"]["metrics"][0]["pods"].update(values)


def trigger(**values: str) -> Break:
    return lambda found: of_kind(found, "ScaledObject")[0]["spec"]["triggers"][1]["metadata"].update(values)


def request_only(found: Manifests) -> None:
    """The GPU in requests and not in limits."""
    own = container(found)["resources"]
    own["requests"]["nvidia.com/gpu"] = own["limits"].pop("nvidia.com/gpu")


MISTAKES: dict[str, tuple[str, str, Break]] = {  # the overlay, the check that sees it, what a person did
    "a quantity in words": ("cpu", "resources", limit(cpu="five")),
    "other labels of the pods": ("cpu", "selectors", labels(app="stepwise")),
    "a probe of a port without a name": ("cpu", "ports", probe(port="web")),
    "more pods at least than at most": ("hpa", "bounds", spec("HorizontalPodAutoscaler", maxReplicas=1)),
    "a share of a count": ("hpa", "targets", backlog(target={"type": "Utilization", "averageUtilization": 50})),
    "two disruption budgets": ("cpu", "disruption", spec("PodDisruptionBudget", minAvailable=1)),
    "half a GPU": ("gpu", "resources", limit(**{"nvidia.com/gpu": "0.5"})),
    "a GPU in requests only": ("gpu", "resources", request_only),
    "an interval that is none": ("hpa", "monitors", endpoint(interval="10 seconds")),
    "a misspelt field of a custom resource": ("hpa", "monitors", endpoint(intervall="10s")),
    # and some that neither the schemas nor an API server would see
    "a Service of other pods": ("cpu", "selectors", spec("Service", selector={"app": "stepwise"})),
    "a budget of other pods": ("cpu", "selectors", spec("PodDisruptionBudget", selector={})),
    "a policy of all pods": ("cpu", "selectors", spec("NetworkPolicy", podSelector={})),
    "a monitor of other Services": (
        "hpa",
        "selectors",
        spec("ServiceMonitor", selector={"matchLabels": {"a": "b"}}),
    ),
    "a monitor of another namespace": ("hpa", "namespaces", spec("ServiceMonitor", namespaceSelector={})),
    "a monitor of a port that is not": ("hpa", "ports", endpoint(port="http-metrics")),
    "metrics for everybody": ("cpu", "ports", spec("NetworkPolicy", ingress=[{"ports": [{"port": "metrics"}]}])),
    "metrics on another port": ("cpu", "ports", setting(DIFFUSION_METRICS_PORT="9464")),
    "threads beyond the cores": ("cpu", "resources", setting(DIFFUSION_THREADS="16")),
    "a request beyond the limit": ("cpu", "resources", limit(memory="1Gi")),
    "volumes beyond the limit": ("cpu", "resources", limit(**{"ephemeral-storage": "256Mi"})),
    "a GPU that is not used": ("gpu", "devices", setting(DIFFUSION_DEVICE="cpu")),
    "a GPU that is not there": ("cpu", "devices", setting(DIFFUSION_DEVICE="cuda")),
    "no node can be drained": ("cpu", "disruption", spec("PodDisruptionBudget", maxUnavailable=0)),
    "a Secret that is not there": (
        "cpu",
        "references",
        lambda found: container(found)["env"][0]["valueFrom"]["secretKeyRef"].update(optional=False),
    ),
    "settings that are not there": (
        "cpu",
        "references",
        own(envFrom=[{"configMapRef": {"name": "stepwise-settings"}}]),
    ),
    "a scaler of another Deployment": ("keda", "references", spec("ScaledObject", scaleTargetRef={"name": "step"})),
    "a misspelt setting": ("cpu", "settings", setting(DIFFUSION_LOG_FORMATS="json")),
    "variables from Services": ("cpu", "settings", lambda found: pod(found).pop("enableServiceLinks")),
    "a longer drain": ("cpu", "grace", setting(DIFFUSION_DRAIN_SECONDS="60")),
    "no time to end": ("cpu", "grace", lambda found: pod(found).pop("terminationGracePeriodSeconds")),
    "no pause before the end": ("cpu", "grace", own(lifecycle={})),
    "liveness that asks for readiness": ("cpu", "probes", probe(path="/readyz")),
    "a start longer than a rollout": ("gpu", "probes", spec("Deployment", progressDeadlineSeconds=600)),
    "root": ("cpu", "hardening", lambda found: pod(found).update(securityContext={})),
    "a file system to write to": ("cpu", "hardening", own(securityContext={})),
    "everything may leave": ("cpu", "egress", spec("NetworkPolicy", egress=[{}])),
    "replicas beside a scaler": ("hpa", "bounds", spec("Deployment", replicas=2)),
    "no pod at night": ("keda", "bounds", spec("ScaledObject", minReplicaCount=0)),
    "a metric without a rule": ("hpa", "measured", backlog(metric={"name": "diffusion_queue_seconds"})),
    "a metric that is not exported": ("keda", "measured", trigger(query="sum(diffusion_refused_total)")),
    "a value that no label has": (
        "keda",
        "measured",
        trigger(query='sum(rate(diffusion_rejections_total{reason="full"}[1m]))'),
    ),
    "a threshold of nothing": ("keda", "targets", trigger(threshold="0")),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_every_mistake_is_seen(mistake: str) -> None:
    overlay, check, do = MISTAKES[mistake]
    broken = copy.deepcopy(rendered(overlay))
    do(broken)
    assert broken != rendered(overlay), "nothing was broken"
    assert CHECKS[check](broken) != []


@pytest.mark.parametrize(
    "do",
    [own(livenessProbe={"periodSecond": 5}), spec("Deployment", replicas="2")],
    ids=["a misspelt field", "a number in quotes"],
)
def test_the_schemas_see_the_rest(do: Break) -> None:
    broken = rendered("cpu")
    assert strict(broken, "1.32") == []
    do(broken)
    assert strict(broken, "1.32") != []


@pytest.mark.parametrize(("budget", "fits"), [(1, True), (2, False), ("50%", True), ("100%", False)])
def test_a_budget_leaves_a_pod_to_move(budget: int | str, fits: bool) -> None:
    found = rendered("hpa")
    spec("PodDisruptionBudget", minAvailable=budget)(found)
    of_kind(found, "PodDisruptionBudget")[0]["spec"].pop("maxUnavailable")
    assert (manifests.disruption(found) == []) is fits


@pytest.mark.parametrize(
    ("text", "value"),
    [("2", 2), ("500m", 0.5), ("1.5Gi", 1.5 * 2**30), ("3M", 3e6), ("2e3", 2000), ("1E", 1e18), ("five", None)],
)
def test_quantities_are_read(text: str, value: float | None) -> None:
    assert manifests.quantity(text) == value
