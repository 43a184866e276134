"""The Kubernetes manifests, as kubectl renders them: they fit the schemas and the service."""

import json
import re
import shutil
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest

from service.local import create_app
from service.settings import PREFIX, load_settings
from service.web.middleware import MAX_FILES_BODY
from tests.docker import manifests, scaling
from tests.docker.manifests import Check, Manifests, container, environment, of_kind, pod
from tests.docker.render import ADAPTER, K8S, OVERLAYS, kustomize, lack, rendered
from tests.service.conftest import running, tiny_settings

if reason := lack():  # every test below renders
    pytest.skip(reason, allow_module_level=True)

ROOT = K8S.parents[1]
NGINX_IDLE_SECONDS = 60  # how long it keeps an idle connection to a server
TRACED = "cpu with every component"  # no overlay of its own: components are what an operator adds

CHECKS: dict[str, Check] = {
    "settings": manifests.settings,
    "grace": manifests.grace,
    "probes": manifests.probes,
    "workers": manifests.workers,
    "restricted": manifests.restricted,
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


def test_manifests_say_what_the_service_says(text: str) -> None:
    found = manifests.read(text)
    assert {name: check(found) for name, check in CHECKS.items()} == {name: [] for name in CHECKS}


@cache  # overlays have most of their manifests in common
def schema_complaint(manifest: str, version: str) -> str:
    """Of the API server's own schemas, which know no custom resources; the manifest is JSON."""
    validator = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate")
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
    validator = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate")
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
    ports = {port["name"]: port["containerPort"] for port in container(manifests.read(text))["ports"]}
    assert loaded.metrics_port == ports["metrics"]
    assert loaded.log_format == "json"
    assert loaded.keep_alive_seconds > NGINX_IDLE_SECONDS
    assert loaded.otel is (f"{PREFIX}OTEL" in given)


def test_the_ingress_has_tls_and_lets_streams_through(traced: Path) -> None:
    found = manifests.read(kustomize(traced))
    (ingress,), (service,) = of_kind(found, "Ingress"), of_kind(found, "Service")
    annotations = ingress["metadata"]["annotations"]
    assert annotations["nginx.ingress.kubernetes.io/proxy-buffering"] == "off"
    assert annotations["nginx.ingress.kubernetes.io/proxy-body-size"] == f"{MAX_FILES_BODY // 1024**2}m"
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


def probe(**values: Any) -> Break:
    return lambda found: container(found)["livenessProbe"]["httpGet"].update(values)


def backlog(**values: Any) -> Break:
    return lambda found: of_kind(found, "HorizontalPodAutoscaler")[0]["spec"]["metrics"][0]["pods"].update(values)


def trigger(**values: str) -> Break:
    return lambda found: of_kind(found, "ScaledObject")[0]["spec"]["triggers"][1]["metadata"].update(values)


MISTAKES: dict[str, tuple[str, str, Break]] = {  # the overlay, the check that sees it, what a person did
    "a misspelt setting": ("cpu", "settings", setting(DIFFUSION_LOG_FORMATS="json")),
    "variables from Services": ("cpu", "settings", lambda found: pod(found).pop("enableServiceLinks")),
    "a longer drain": ("cpu", "grace", setting(DIFFUSION_DRAIN_SECONDS="60")),
    "no time to end": ("cpu", "grace", lambda found: pod(found).pop("terminationGracePeriodSeconds")),
    "no pause before the end": ("cpu", "grace", own(lifecycle={})),
    "liveness that asks for readiness": ("cpu", "probes", probe(path="/readyz")),
    "a start longer than a rollout": ("gpu", "probes", spec("Deployment", progressDeadlineSeconds=600)),
    "more workers than cores": ("gpu", "workers", setting(DIFFUSION_HTTP_WORKERS="8")),
    "root": ("cpu", "restricted", lambda found: pod(found).update(securityContext={})),
    "a metric without a rule": ("hpa", "measured", backlog(metric={"name": "diffusion_queue_seconds"})),
    "a metric that is not exported": ("keda", "measured", trigger(query="sum(diffusion_refused_total)")),
    "a value that no label has": (
        "keda",
        "measured",
        trigger(query='sum(rate(diffusion_rejections_total{reason="full"}[1m]))'),
    ),
}


@pytest.mark.parametrize(("overlay", "check", "do"), MISTAKES.values(), ids=MISTAKES)
def test_every_mistake_is_seen(overlay: str, check: str, do: Break) -> None:
    broken = rendered(overlay)
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
