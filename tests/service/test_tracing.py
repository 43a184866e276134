"""Spans, in memory and over the wire."""

import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from service.engine.core import EngineConfig, EngineCore
from service.local import around
from service.observe.tracing import otlp_provider
from service.registry import load_runners
from service.settings import SettingsError
from tests.service.conftest import Running, running, tiny_settings
from tests.service.process import serving
from tests.waiting import wait_until

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
QUERY = "/generate?model=dit&class=0&steps=3&n=2&guidance=1"


@pytest.fixture(scope="module")
def traced(checkpoints: Path) -> Iterator[tuple[Running, InMemorySpanExporter]]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    settings = tiny_settings(checkpoints)
    core = EngineCore(load_runners(settings), EngineConfig(max_rows=6))
    with running(around(core, settings, provider)) as live:
        yield live, exporter


def spans_of(traced: tuple[Running, InMemorySpanExporter], path: str, **headers: str) -> dict[str, ReadableSpan]:
    """By name, of one request."""
    live, exporter = traced
    exporter.clear()
    live.client.post(path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    wait_until(lambda: any(span.parent is None or span.parent.is_remote for span in exporter.get_finished_spans()))
    return {span.name: span for span in exporter.get_finished_spans()}


def test_a_request_is_a_span_with_its_parts_inside(traced: tuple[Running, InMemorySpanExporter]) -> None:
    spans = spans_of(traced, QUERY, X_Request_Id="my-request")
    assert set(spans) == {"POST /generate", "queue", "denoise", "encode"}
    outer = spans.pop("POST /generate")
    assert outer.attributes == {
        "http.request.method": "POST",
        "http.route": "/generate",
        "http.response.status_code": 200,
        "diffusion.request_id": "my-request",
    }
    for part in spans.values():
        assert part.parent == outer.context
        assert part.attributes
        assert (part.attributes["diffusion.model"], part.attributes["diffusion.images"]) == ("dit", 2)
    assert (spans["denoise"].attributes or {})["diffusion.steps"] == 3
    times = [outer.start_time, spans["queue"].start_time, spans["denoise"].start_time, spans["denoise"].end_time]
    times += [spans["encode"].start_time, spans["encode"].end_time, outer.end_time]
    known = [time for time in times if time is not None]
    assert len(known) == 7
    assert all(
        later - earlier > -1_000_000 for earlier, later in zip(known, known[1:], strict=False)
    )  # 1 ms: clocks


def test_a_callers_trace_goes_on(traced: tuple[Running, InMemorySpanExporter]) -> None:
    outer = spans_of(traced, QUERY, traceparent=f"00-{TRACE}-{PARENT}-01")["POST /generate"]
    assert outer.context is not None
    assert outer.parent is not None
    assert f"{outer.context.trace_id:x}" == TRACE.lstrip("0")
    assert f"{outer.parent.span_id:x}" == PARENT


@pytest.mark.parametrize("header", ["nonsense", f"00-{TRACE}-{'0' * 16}-01", "00-\xff"])
def test_a_broken_traceparent_starts_a_new_trace(traced: tuple[Running, InMemorySpanExporter], header: str) -> None:
    live, exporter = traced
    exporter.clear()
    live.client.post(QUERY, headers=[(b"traceparent", header.encode("latin-1"))])
    wait_until(lambda: len(exporter.get_finished_spans()) == 4)
    assert exporter.get_finished_spans()[-1].parent is None


def test_streams_and_refusals_are_traced_and_probes_are_not(traced: tuple[Running, InMemorySpanExporter]) -> None:
    spans = spans_of(traced, QUERY, Accept="text/event-stream")
    assert spans["denoise"].parent == spans["POST /generate"].context
    refused = spans_of(traced, "/generate?model=nobody&class=0")
    assert set(refused) == {"POST /generate"}
    assert (refused["POST /generate"].attributes or {})["http.response.status_code"] == 404
    nowhere = spans_of(traced, "/any/thing")  # the path is not a name: there would be too many
    assert set(nowhere) == {"POST"}
    live, exporter = traced
    exporter.clear()
    live.client.get("/livez")
    live.client.get("/models")
    wait_until(lambda: bool(exporter.get_finished_spans()))
    assert [span.name for span in exporter.get_finished_spans()] == ["GET /models"]


def test_spans_leave_the_process_before_it_ends(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    received: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            received.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Silent."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as collector, (tmp_path / "log").open("w+") as log:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "named-by-its-operator")
        with serving(checkpoints, log, otel="true") as (process, url):
            assert httpx.post(url + QUERY).status_code == 200
            process.terminate()
            assert process.wait(timeout=60) == 0
        collector.shutdown()
    told = [ExportTraceServiceRequest.FromString(body) for body in received]
    resources = [resource for message in told for resource in message.resource_spans]
    names = {span.name for resource in resources for scope in resource.scope_spans for span in scope.spans}
    assert {"POST /generate", "queue", "denoise", "encode"} <= names
    attributes = {item.key: item.value.string_value for item in resources[0].resource.attributes}
    assert attributes["service.name"] == "named-by-its-operator"


def test_without_the_extra_the_start_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(SettingsError, match=r"DIFFUSION_OTEL: .*: pip install 'stepwise-diffusion\[otel\]'"):
        otlp_provider()
