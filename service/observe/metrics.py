"""Prometheus metrics, observed on the event loop: the engine thread only hands over plain numbers."""

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service.engine.core import ModelStats, StepStats

DIGITS = (1, 1.5, 2, 3, 5, 7)
# Neighbours at most 1.7x apart, so that a quantile read from them is right to a quarter.
SECONDS = (*(float(f"{digit}e{power}") for power in (-3, -2, -1, 0, 1) for digit in DIGITS), 100.0)
STEP_SECONDS = (*(float(f"{digit}e{power}") for power in (-4, -3, -2, -1) for digit in DIGITS), 1.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
OUTCOMES = ("ok", "rejected", "cancelled", "expired", "error")
REJECTIONS = ("queue_full", "overload", "deadline", "unavailable")


class Metrics:
    """All metrics of one application, in a registry of its own; every label set exists from the start."""

    def __init__(self, models: Iterable[str]):
        self.registry = CollectorRegistry()
        self.request_seconds = self._histogram("request_duration_seconds", "Arrival to encoded answer", SECONDS)
        self.queue_seconds = self._histogram("request_queue_seconds", "Arrival to first step", SECONDS)
        self.denoise_seconds = self._histogram("request_denoise_seconds", "First step to last", SECONDS)
        self.step_seconds = self._histogram("step_duration_seconds", "One step of the engine", STEP_SECONDS)
        self.step_rows = self._histogram("step_rows", "Forward rows of a step", ROWS)
        self.requests = self._counter("requests", "Requests by outcome", "outcome")
        self.rejections = self._counter("rejections", "Refused requests by reason", "reason")
        self.images = self._counter("images", "Images generated")
        self.evaluations = self._counter("evaluations", "Model evaluations (forward rows)")
        self.padding = self._counter("padding_rows", "Forward rows that only filled a CUDA graph")
        self.saved = self._counter("cancelled_evaluations_saved", "Evaluations spared by cancellation")
        for model in models:
            self._initialise(model)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"diffusion_{name}", text, ["model"], registry=self.registry, buckets=buckets)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"diffusion_{name}", text, ["model", *labels], registry=self.registry)

    def _initialise(self, model: str) -> None:
        per_model = (self.request_seconds, self.queue_seconds, self.denoise_seconds, self.step_seconds)
        for metric in (*per_model, self.step_rows, self.images, self.evaluations, self.padding, self.saved):
            metric.labels(model)
        for outcome in OUTCOMES:
            self.requests.labels(model, outcome)
        for reason in REJECTIONS:
            self.rejections.labels(model, reason)

    def observe_step(self, stats: StepStats) -> None:
        self.step_seconds.labels(stats.model).observe(stats.seconds)
        self.step_rows.labels(stats.model).observe(stats.num_rows)
        self.evaluations.labels(stats.model).inc(stats.num_rows)
        self.padding.labels(stats.model).inc(stats.num_padding_rows)

    def observe_answer(self, model: str, images: int, queue: float, denoise: float, total: float) -> None:
        """A request that was answered with images; durations in seconds."""
        self.queue_seconds.labels(model).observe(queue)
        self.denoise_seconds.labels(model).observe(denoise)
        self.request_seconds.labels(model).observe(total)
        self.images.labels(model).inc(images)
        self.requests.labels(model, "ok").inc()

    def reject(self, model: str, reason: str) -> None:
        self.rejections.labels(model, reason).inc()
        self.requests.labels(model, "rejected").inc()

    def watch(self, read: Callable[[], dict[str, ModelStats]], info: dict[str, dict[str, str]]) -> None:
        """Export gauges that are read from the engine at scrape time."""
        self.registry.register(_EngineCollector(read, info))


class _EngineCollector(Collector):
    GAUGES = {
        "queue_depth": "Requests that wait for their first step",
        "running_slots": "Images being denoised",
        "backlog_seconds": "Device time that accepted requests still need",
    }

    def __init__(self, read: Callable[[], dict[str, ModelStats]], info: dict[str, dict[str, str]]):
        self._read, self._info = read, info

    def collect(self) -> Iterable[Metric]:
        stats = self._read()
        for name, text in self.GAUGES.items():
            gauge = GaugeMetricFamily(f"diffusion_{name}", text, labels=["model"])
            for model in self._info:
                gauge.add_metric([model], getattr(stats.get(model, ModelStats()), name))
            yield gauge
        labels = sorted({label for values in self._info.values() for label in values})
        info = GaugeMetricFamily("diffusion_model_info", "Served models", labels=["model", *labels])
        for model, values in self._info.items():
            info.add_metric([model, *(values[label] for label in labels)], 1)
        yield info
