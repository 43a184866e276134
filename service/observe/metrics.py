"""Prometheus metrics: what this process counts, and the exposition of what all processes have counted."""

from collections.abc import Callable, Iterable
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from service.observe.scoreboard import CONNECTIONS, Family, Scoreboard
from service.wire.messages import ModelCard


class Metrics(Collector):
    """A worker's counts in its entry of the scoreboard, and a registry that exposes the sums over all entries.

    Args:
        cards: the models, for diffusion_model_info.
    """

    def __init__(self, board: Scoreboard, entry: int, cards: Callable[[], Iterable[ModelCard]]):
        self.board, self.entry, self._entry, self._cards = board, entry, board.entry(entry), cards
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def answer(self, model: str, images: int, queue: float, denoise: float, total: float) -> None:
        """A request that was answered with images; durations in seconds."""
        self._entry.observe("request_queue_seconds", model, queue)
        self._entry.observe("request_denoise_seconds", model, denoise)
        self._entry.observe("request_duration_seconds", model, total)
        self._entry.add("images", model, value=images)
        self.end(model, "ok")

    def end(self, model: str, outcome: str) -> None:
        self._entry.add("requests", model, outcome)

    def reject(self, model: str, reason: str) -> None:
        self._entry.add("rejections", model, reason)

    def totals(self, name: str, *labels: str) -> list[float]:
        """Of all processes: a number, or the counts of a histogram's buckets and, last, its sum."""
        first, buckets = self.board.layout.places[name, *labels], self.board.layout.buckets[name]
        return [self.board.total(column) for column in range(first, first + len(buckets) + (2 if buckets else 1))]

    def collect(self) -> Iterable[Metric]:
        for family in self.board.layout.families:
            yield self._histogram(family) if family.kind == "histogram" else self._numbers(family)
        yield self._info()
        yield self._connections()

    def _numbers(self, family: Family) -> Metric:
        kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
        metric = kind(f"diffusion_{family.name}", family.text, labels=family.labels)
        for labels in family.sets:
            metric.add_metric(labels, self.totals(family.name, *labels)[0])
        return metric

    def _histogram(self, family: Family) -> Metric:
        metric = HistogramMetricFamily(f"diffusion_{family.name}", family.text, labels=family.labels)
        bounds = [floatToGoString(bound) for bound in (*family.buckets, float("inf"))]
        for labels in family.sets:
            *counts, total = self.totals(family.name, *labels)
            metric.add_metric(labels, list(zip(bounds, accumulate(counts), strict=True)), total)
        return metric

    def _info(self) -> Metric:
        labels = ["model", "architecture", "device", "dtype", "backend", "weights_sha256", "version"]
        info = GaugeMetricFamily("diffusion_model_info", "Served models", labels=labels)
        for card in self._cards():
            what = card.name, card.architecture, card.device, card.dtype, card.backend
            info.add_metric((*what, card.sha256, str(card.version)), 1)
        return info

    def _connections(self) -> Metric:
        text = "Open connections of each HTTP worker"
        metric = GaugeMetricFamily("diffusion_worker_connections", text, labels=["worker"])
        for entry, count in enumerate(self.board.column(CONNECTIONS)):
            if entry:  # entry 0 is the engine's
                metric.add_metric([str(entry)], count)
        return metric
