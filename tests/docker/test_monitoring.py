"""Rules and dashboard beside a real Prometheus that scrapes the real service under load."""

import json
import re
import subprocess
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client import generate_latest

from benchmarks.client import reserved_port
from service.settings import Settings
from tests.metrics import registry
from tests.service.process import serving
from tests.skips import needs
from tests.waiting import wait_until

DOCKER = Path(__file__).resolve().parents[2] / "docker"
RULES, CONFIG = DOCKER / "prometheus" / "rules.yml", DOCKER / "prometheus" / "prometheus.yml"
DASHBOARDS = sorted((DOCKER / "grafana" / "dashboards").glob("*.json"))
DATA_SOURCE = DOCKER / "grafana" / "provisioning" / "datasources" / "prometheus.yaml"
# Grafana fills these in. Ten seconds hold several scrapes of the tests' Prometheus.
VARIABLES = {"$__rate_interval": "10s", "$model": ".*"}
SELECTOR = re.compile(r"\b(?:diffusion_\w+|up)(?:\{[^}]*\})?")
JOB = "stepwise"
WORKERS = 2

needs_prometheus = needs("prometheus")  # promtool comes with it


def load_rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def load_panels() -> list[dict[str, Any]]:
    """Of all dashboards, those inside of rows included."""
    panels = [panel for path in DASHBOARDS for panel in json.loads(path.read_text())["panels"]]
    return panels + [inner for panel in panels for inner in panel.get("panels", [])]


def dashboard_queries() -> dict[str, str]:
    """PromQL by panel and letter, variables filled in."""
    found = {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in load_panels()
        for target in panel.get("targets", [])
    }
    assert len(found) > 15, "the dashboards were not read"
    for name, value in VARIABLES.items():
        found = {key: text.replace(name, value) for key, text in found.items()}
    assert [text for text in found.values() if "$" in text] == []
    return found


def rule_queries() -> dict[str, str]:
    return {rule.get("record") or rule["alert"]: rule["expr"] for rule in load_rules()}


def words(queries: Iterable[str]) -> set[str]:
    """Whole names, so that a longer one does not count for a shorter one."""
    return {word for query in queries for word in re.findall(r"[\w:]+", query)}


def all_selectors() -> set[str]:
    texts = [*dashboard_queries().values(), *rule_queries().values()]
    return {match for text in texts for match in SELECTOR.findall(re.sub(r"\b\w+:\w+:\w+\b", "", text))}


@dataclass
class Prometheus:
    """One that scrapes the service."""

    client: httpx.Client

    def ask(self, query: str) -> list[dict[str, Any]]:
        """The samples; raises where the query cannot be parsed."""
        answer = self.client.get("/api/v1/query", params={"query": query}).json()
        assert answer["status"] == "success", f"{query}: {answer}"
        return answer["data"]["result"]

    def numbers(self, query: str) -> list[float]:
        """NaN is left out."""
        values = [float(sample["value"][1]) for sample in self.ask(query)]
        return [value for value in values if value == value]


@contextmanager
def scraping(url: str, folder: Path) -> Iterator[Prometheus]:
    """Prometheus with the project's rules and a scrape every second."""
    config = yaml.safe_load(CONFIG.read_text())
    config["global"] |= {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(RULES)]
    for job in config["scrape_configs"]:
        job["static_configs"] = [{"targets": [url.removeprefix("http://")]}]
    config["scrape_configs"] = [job for job in config["scrape_configs"] if job["job_name"] == JOB]
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    command = ["prometheus", f"--config.file={path}", f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "log").open("w+") as log, reserved_port() as port:
        address = f"127.0.0.1:{port}"
        process = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log)
        try:
            with httpx.Client(base_url=f"http://{address}", timeout=60) as client:
                wait_until(lambda: answers(client))
                yield Prometheus(client)
        finally:
            process.terminate()
            process.wait(timeout=60)


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/-/ready").status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def load(url: str) -> Iterator[None]:
    """Short requests to both models, until the block ends."""
    stop, statuses = threading.Event(), set[int]()

    def ask(model: str) -> None:
        with httpx.Client(base_url=url, timeout=60) as client:
            while not stop.wait(0.02):
                query = {"model": model, "class": 1, "steps": 10, "guidance": 2}
                statuses.add(client.post("/generate", params=query).status_code)

    clients = [threading.Thread(target=ask, args=(model,)) for model in ("dit", "unet") * 2]
    for client in clients:
        client.start()
    try:
        yield
    finally:
        stop.set()
        for client in clients:
            client.join(timeout=60)
    assert statuses == {200}


@pytest.fixture(scope="module")
def prometheus(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Of a service with two HTTP workers, under load and with some scrapes behind it."""
    cost = {"t0_ms": 1, "t1_ms": 0.1}
    models = {name: {"checkpoint": str(checkpoints / name), "simulate": cost} for name in ("dit", "unet")}
    given = {"models": json.dumps(models), "http_workers": WORKERS}
    folder = tmp_path_factory.mktemp("prometheus")
    with (
        (folder / "service").open("w") as log,
        serving(checkpoints, log, **given) as (_, url),
        load(url),
        scraping(url, folder) as live,
    ):
        scrapes = 'min(count_over_time(diffusion_requests_total{outcome="ok"}[10s])) >= 4'
        wait_until(lambda: bool(live.ask(scrapes)))
        wait_until(lambda: bool(live.numbers("model:diffusion_slow_answers:ratio_rate6h")))
        yield live


@needs_prometheus
@pytest.mark.parametrize(
    "command",
    [("check", "config", CONFIG), ("check", "rules", RULES), ("test", "rules", RULES.with_name("rules_test.yml"))],
    ids=["config", "rules", "rules_test"],
)
def test_promtool_accepts(command: tuple[str, str, Path]) -> None:
    checked = subprocess.run(["promtool", *map(str, command)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_alert_is_tested_firing_and_silent() -> None:
    seen: dict[str, set[bool]] = {rule["alert"]: set() for rule in load_rules() if "alert" in rule}
    for test in yaml.safe_load(RULES.with_name("rules_test.yml").read_text())["tests"]:
        for case in test.get("alert_rule_test", []):
            seen[case["alertname"]].add(bool(case.get("exp_alerts")))
    assert {name: kinds for name, kinds in seen.items() if kinds != {True, False}} == {}


def test_every_alert_says_what_to_do() -> None:
    for rule in load_rules():
        if "alert" in rule:
            assert rule["labels"]["severity"] in {"page", "ticket"}, rule["alert"]
            assert set(rule["annotations"]) == {"summary", "description"}, rule["alert"]


def test_every_recording_is_used() -> None:
    recordings = {rule["record"] for rule in load_rules() if "record" in rule}
    assert recordings - words([*dashboard_queries().values(), *rule_queries().values()]) == set()


@needs_prometheus
@pytest.mark.parametrize("panel", dashboard_queries())
def test_a_panel_shows_numbers(prometheus: Prometheus, panel: str) -> None:
    assert prometheus.numbers(dashboard_queries()[panel]), dashboard_queries()[panel]


@needs_prometheus
@pytest.mark.parametrize("rule", load_rules(), ids=lambda rule: rule.get("record") or rule["alert"])
def test_a_rule_can_be_computed_and_no_alert_is_up(prometheus: Prometheus, rule: dict[str, Any]) -> None:
    """A service that is well raises none; what raises them is in rules_test.yml."""
    samples = prometheus.ask(rule["expr"])
    assert bool(samples) is ("record" in rule), samples


@needs_prometheus
@pytest.mark.parametrize("selector", sorted(all_selectors()))
def test_what_is_selected_exists(prometheus: Prometheus, selector: str) -> None:
    """Metrics, labels and their values, the bucket bound of the objective among them."""
    assert prometheus.ask(selector)


@needs_prometheus
def test_workers_share_their_series(prometheus: Prometheus) -> None:
    """An instance has one value a model, whichever worker is scraped; only connections are told by worker."""
    assert len(prometheus.ask("diffusion_worker_connections")) == WORKERS
    assert len(prometheus.ask("diffusion_backlog_seconds")) == 2
    assert prometheus.numbers("sum(resets(diffusion_images_total[10s]))") == [0]


def test_the_alert_on_connections_comes_before_the_limit() -> None:
    (bound,) = re.findall(r"\d+$", rule_queries()["StepwiseConnections"])
    assert 0.8 < int(bound) / Settings.model_fields["max_connections"].default < 1


@needs_prometheus
def test_a_wrong_name_would_be_noticed(prometheus: Prometheus) -> None:
    assert prometheus.ask("diffusion_requests") == []
    assert prometheus.ask('diffusion_request_duration_seconds_bucket{le="5"}') == []
    with pytest.raises(AssertionError, match="parse error"):
        prometheus.ask("rate(diffusion_requests_total[5m]")


def test_every_metric_of_the_service_is_in_view() -> None:
    """Each exported metric is in a query of a dashboard."""
    names = re.findall(r"^# TYPE (diffusion_\w+) ", generate_latest(registry()).decode(), re.MULTILINE)
    shown = {re.sub(r"_(bucket|sum|count)$", "", word) for word in words(dashboard_queries().values())}
    exported = {name for name in names if not name.endswith("_created")}
    assert len(exported) > 10
    assert exported - shown == set()


def test_panels_have_places_of_their_own() -> None:
    """Grafana moves panels that overlap, and drops one of two with the same id."""
    for path in DASHBOARDS:
        panels = json.loads(path.read_text())["panels"]
        cells = [
            (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
            for panel in panels
            for x in range(panel["gridPos"]["w"])
            for y in range(panel["gridPos"]["h"])
        ]
        assert len(cells) == len(set(cells))
        assert max(x for x, _ in cells) < 24
        assert len({panel["id"] for panel in panels}) == len(panels)


OF_NO_MODEL = (
    r"sum\(up\{[^}]*\}\)|max\(sum by \(instance\) \(\w+\)\)|diffusion_(worker_connections|protocol_refusals_total)"
)


def test_panels_take_the_chosen_data_source_and_model() -> None:
    for panel in load_panels():
        for target in panel.get("targets", []):
            assert target["datasource"]["uid"] == "${datasource}", panel["title"]
            own = re.sub(OF_NO_MODEL, "", target["expr"])
            assert own.count("diffusion_") == own.count('model=~"$model"'), panel["title"]


def test_the_variables_exist() -> None:
    for path in DASHBOARDS:
        variables = {v["name"]: v for v in json.loads(path.read_text())["templating"]["list"]}
        assert set(variables) == {"datasource", "model"}
        assert variables["model"]["query"]["query"] == "label_values(diffusion_model_info, model)"
        assert variables["model"]["allValue"] == VARIABLES["$model"]


def test_grafana_knows_how_often_prometheus_scrapes() -> None:
    """$__rate_interval is four times timeInterval: were that below the truth, graphs would have holes."""
    (source,) = yaml.safe_load(DATA_SOURCE.read_text())["datasources"]
    assert source["jsonData"]["timeInterval"] == yaml.safe_load(CONFIG.read_text())["global"]["scrape_interval"]


def test_rules_and_configuration_agree_on_the_job() -> None:
    jobs = {job["job_name"] for job in yaml.safe_load(CONFIG.read_text())["scrape_configs"]}
    asked = {name for text in rule_queries().values() for name in re.findall(r'job="(\w+)"', text)}
    assert asked == {JOB}
    assert jobs >= asked
