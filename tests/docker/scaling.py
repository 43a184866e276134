"""What autoscalers ask for: metrics that the service really exports, and the same from both."""

import re
from collections import defaultdict
from typing import Any

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tests.docker.manifests import Manifest, Manifests, of_kind
from tests.metrics import registry

Exported = dict[str, dict[str, set[str]]]  # by series: its labels and their values

SERIES = re.compile(r"(diffusion_\w+)\s*(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)=~?"([^"]*)"')


def exported() -> Exported:
    """Every series of a service with one model."""
    series: Exported = defaultdict(lambda: defaultdict(set))
    for family in text_string_to_metric_families(generate_latest(registry()).decode()):
        for sample in family.samples:
            for label, value in sample.labels.items():
                series[sample.name][label].add(value)
    return series


def query(text: str, series: Exported) -> list[str]:
    """Series that a query names exist, and so do the values that it wants of the service's own labels."""
    found = SERIES.findall(text)
    complaints = [f"{name} is not exported" for name, _ in found if name not in series]
    for name, selector in found:
        for label, wanted in MATCHER.findall(selector):
            values = series.get(name, {}).get(label, set(wanted.split("|")))
            complaints += [f"{name} has no {label} {value}" for value in wanted.split("|") if value not in values]
    return complaints or ([] if found else [f"no series of the service in {text!r}"])


def measured(manifests: Manifests, rules: list[dict[str, Any]], series: Exported) -> list[str]:
    """What is scaled on is exported: by the adapter's rules for the HPA, by the query itself for KEDA."""
    served = {rule["name"]["as"] for rule in rules}
    complaints = []
    for item in of_kind(manifests, "HorizontalPodAutoscaler"):
        names = [metric["pods"]["metric"]["name"] for metric in item["spec"]["metrics"] if metric["type"] == "Pods"]
        complaints += [f"no rule of the adapter makes {name}" for name in names if name not in served]
    for rule in rules:
        selector = re.search(r"<<\.LabelMatchers>>,?([^}]*)", rule["metricsQuery"])
        name = rule["seriesQuery"].partition("{")[0]
        complaints += query(f"{name}{{{selector[1] if selector else ''}}}", series)
    for trigger in _triggers(manifests):
        complaints += query(trigger["metadata"].get("query", ""), series)
    return complaints


def number(quantity: str) -> float:
    """250m is 0.25; the manifests use no other suffix."""
    return float(quantity.removesuffix("m")) / (1000 if quantity.endswith("m") else 1)


def demands(manifests: Manifests) -> dict[str, Any]:
    """Bounds, pace and targets in one form, to compare two autoscalers with each other."""
    for item in of_kind(manifests, "HorizontalPodAutoscaler"):
        spec = item["spec"]
        values = [number(metric["pods"]["target"]["averageValue"]) for metric in spec["metrics"]]
        return {"pods": (spec["minReplicas"], spec["maxReplicas"]), "pace": spec["behavior"], "targets": values}
    (item,) = of_kind(manifests, "ScaledObject")
    spec = item["spec"]
    return {
        "pods": (spec["minReplicaCount"], spec["maxReplicaCount"]),
        "pace": spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"],
        "targets": [number(trigger["metadata"]["threshold"]) for trigger in spec["triggers"]],
    }


def _triggers(manifests: Manifests) -> list[Manifest]:
    return [trigger for item in of_kind(manifests, "ScaledObject") for trigger in item["spec"]["triggers"]]


def queries(manifests: Manifests, rules: list[dict[str, Any]]) -> list[str]:
    """Every query in PromQL; the adapter's templates are filled in as the adapter would."""
    filled = {"<<.GroupBy>>": "pod", "<<.LabelMatchers>>": 'namespace="stepwise",pod=~"stepwise-1|stepwise-2"'}
    found = [trigger["metadata"]["query"] for trigger in _triggers(manifests)]
    for rule in rules:
        found.append(rule["seriesQuery"])
        text = rule["metricsQuery"].replace("<<.Series>>", rule["seriesQuery"].partition("{")[0])
        for template, value in filled.items():
            text = text.replace(template, value)
        found.append(text)
    return found
