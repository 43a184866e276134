"""The Compose file beside the Dockerfile, the settings, and the files that it mounts."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import PREFIX, Settings, load_settings
from service.supervisor import ANSWER_SECONDS
from tests.docker.dockerfile import ARGUMENTS, ROOT, TARGETS, environment, health_check, seconds, steps

COMPOSE = ROOT / "docker" / "compose.yaml"


def compose() -> dict[str, Any]:
    """With the defaults of its variables."""
    return yaml.safe_load(re.sub(r"\$\{\w+:?-([^}]*)\}", r"\1", COMPOSE.read_text()))


def services() -> dict[str, dict[str, Any]]:
    return compose()["services"]


def test_every_setting_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names and values of Dockerfile and Compose file."""
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)
    given = services()["stepwise"]["environment"] | environment("cpu") | environment("cuda")
    ours = {name: str(value) for name, value in given.items() if name.startswith(PREFIX)}
    assert len(ours) > 3
    for name, value in ours.items():
        assert name.removeprefix(PREFIX).lower() in Settings.model_fields
        monkeypatch.setenv(name, value)
    load_settings()


@pytest.mark.parametrize("name", services())
def test_every_service_is_confined(name: str) -> None:
    service = services()[name]
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}
    assert service["healthcheck"]["test"][0] == "CMD"
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert "build" in service or re.search(r":v?\d+\.\d+\.\d+$", service["image"])


def test_mounts_are_named_volumes_or_files_that_exist() -> None:
    for service in services().values():
        for source, _, rest in (mount.partition(":") for mount in service.get("volumes", [])):
            if source.startswith("."):
                assert (COMPOSE.parent / source).is_dir(), source
                assert rest.endswith(":ro")
            else:
                assert source in compose()["volumes"]


def test_compose_builds_and_runs_what_the_dockerfile_makes() -> None:
    service = services()["stepwise"]
    build = service["build"]
    assert (COMPOSE.parent / build["context"] / "Dockerfile").resolve() == ROOT / "Dockerfile"
    declared = ARGUMENTS.keys() | {rest.partition("=")[0] for t in TARGETS for rest in steps(t, "ARG")}
    assert set(build["args"]) <= declared
    target = build["target"]
    assert service["user"] == steps(target, "USER")[-1]
    assert [port.rpartition(":")[2] for port in service["ports"]] == steps(target, "EXPOSE")
    options, command = health_check(target)
    wanted = {name.replace("-", "_"): value for name, value in options.items()} | {"test": ["CMD", *command]}
    assert {
        name: value if name == "test" else str(value) for name, value in service["healthcheck"].items()
    } == wanted
    (tmpfs,) = service["tmpfs"]
    assert tmpfs.startswith("/tmp:exec,")


def test_compose_gives_the_drain_its_time() -> None:
    service = services()["stepwise"]
    drain = float(service["environment"]["DIFFUSION_DRAIN_SECONDS"])
    assert seconds(service["stop_grace_period"]) > drain + 2 * ANSWER_SECONDS


def test_compose_starts_a_worker_for_every_two_cores() -> None:
    """As beside a GPU, where the service would count the machine's."""
    service = services()["stepwise"]
    cores = float(service["deploy"]["resources"]["limits"]["cpus"])
    assert service["environment"]["DIFFUSION_HTTP_WORKERS"] == cores / 2


def test_prometheus_and_grafana_find_what_they_read() -> None:
    folder = COMPOSE.parent
    jobs = yaml.safe_load((folder / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in jobs}
    assert targets["stepwise"] == [f"stepwise:{services()['stepwise']['environment']['DIFFUSION_METRICS_PORT']}"]
    provisioning = folder / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "stepwise.yaml").read_text())["providers"]
    place = provider["options"]["path"]
    assert f"./grafana/dashboards:{place}:ro" in services()["grafana"]["volumes"]
    home = Path(services()["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert home.parent == Path(place)
    assert (folder / "grafana" / "dashboards" / home.name).is_file()
