"""Logs: every line names the request that it is about; text for people, JSON for machines. Keys never get here."""

import json
import logging
import time
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

from starlette.types import Message, Scope

from service.errors import CLIENT_CLOSED_REQUEST

access = logging.getLogger("service.access")
request_id: ContextVar[str] = ContextVar("request_id", default="")

PROBES = {"/livez", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"}  # asked for every few seconds
MAX_PATH = 200  # characters of a path that are logged


def configure(level: str, form: Literal["text", "json"]) -> None:
    """Every logger of the process, uvicorn's included, to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    handler.addFilter(_name_request)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def _name_request(record: logging.LogRecord) -> bool:
    record.request_id = request_id.get()
    return True


class TextFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s%(where)s")

    def format(self, record: logging.LogRecord) -> str:
        name = getattr(record, "request_id", "")
        record.where = f" [{name}]" if name else ""
        return super().format(record)


class JsonFormatter(logging.Formatter):
    """One object a line: time, level, logger, message, request_id, what the line adds, exception."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if name := getattr(record, "request_id", ""):
            line["request_id"] = name
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


class AccessLine:
    """One line about a request, when its answer has left. The query is not in it: it is the caller's business."""

    def __init__(self, scope: Scope):
        self._scope, self._started, self._status = scope, time.monotonic(), 0

    def note(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]

    def write(self, failed: bool) -> None:
        """failed: the application raised, and the server answers 500."""
        path = self._scope.get("raw_path", b"").decode("ascii", "backslashreplace")[:MAX_PATH]  # as it was sent
        fields = {
            "method": self._scope["method"],
            "path": path,
            "status": 500 if failed and not self._status else self._status or CLIENT_CLOSED_REQUEST,
            "seconds": round(time.monotonic() - self._started, 6),
            "key": self._scope.get("key_name", ""),  # never the key itself
        }
        level = logging.DEBUG if path in PROBES and self._status < 400 else logging.INFO
        text = "%(method)s %(path)s %(status)d in %(seconds).3f s" + (" for %(key)s" if fields["key"] else "")
        access.log(level, text, fields, extra={"fields": fields})
