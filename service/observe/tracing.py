"""OpenTelemetry spans, with the otel extra: a request, and in it queue, denoise and encode.

OpenTelemetry's own variables say where they go (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SERVICE_NAME, ...).
"""

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from models.extras import how_to_install
from service.paths import PROBES
from service.settings import SettingsError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

SERVICE_NAME = "stepwise-diffusion"


class Spans:
    """Records spans inside the request that is being served; without a provider it does nothing."""

    def __init__(self, provider: "TracerProvider | None" = None):
        self._tracer = provider and provider.get_tracer("service")

    def record(self, name: str, start: float, end: float, **attributes: Any) -> None:
        """A child of the span that TraceMiddleware has opened; start and end are seconds of time.monotonic()."""
        if self._tracer is None:
            return
        named = {f"diffusion.{key}": value for key, value in attributes.items()}
        since_1970 = time.time_ns() - time.monotonic_ns()
        span = self._tracer.start_span(name, start_time=since_1970 + round(start * 1e9), attributes=named)
        span.end(since_1970 + round(end * 1e9))


class TraceMiddleware:
    """A span around every request that is not a probe, in the trace that a traceparent header names."""

    def __init__(self, app: ASGIApp, provider: "TracerProvider"):
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self.app, self._tracer = app, provider.get_tracer("service")
        self._propagator = TraceContextTextMapPropagator()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in PROBES:
            await self.app(scope, receive, send)
            return
        from opentelemetry.trace import SpanKind, StatusCode

        carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        with self._tracer.start_as_current_span(
            scope["method"],  # and the route, as soon as it is found: a path could be anything
            context=self._propagator.extract(carrier),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": scope["method"], "diffusion.request_id": scope["request_id"]},
        ) as span:

            async def noted(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                    if message["status"] >= 500:
                        span.set_status(StatusCode.ERROR)
                await send(message)

            try:
                await self.app(scope, receive, noted)
            finally:
                if route := getattr(scope.get("route"), "path", ""):
                    span.set_attribute("http.route", route)
                    span.update_name(f"{scope['method']} {route}")


def otlp_provider() -> "TracerProvider":
    """Sends spans in batches over OTLP/HTTP, from a thread of its own.

    Raises:
        SettingsError: the otel extra is not installed.
    """
    with suppress(ImportError):
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME as NAME
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        resource = Resource.create({NAME: SERVICE_NAME}).merge(OTELResourceDetector().detect())
        provider = TracerProvider(resource=resource)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return provider
    raise SettingsError(f"setting DIFFUSION_OTEL: OpenTelemetry is not installed: {how_to_install('otel')}")
