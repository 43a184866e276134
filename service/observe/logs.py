"""Logs: every line names the request that it is about; text for people, JSON for machines. Keys never get here.

Times are UTC in both, so that the two logs of one event can be laid side by side.
"""

import json
import logging
import time
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal

from starlette.types import Message, Scope

from service.paths import PROBES, READINESS

access = logging.getLogger("service.access")
request_id: ContextVar[str] = ContextVar("request_id", default="")
_noted: ContextVar[dict[str, Any] | None] = ContextVar("noted", default=None)  # about the request, for its line

CLIENT_CLOSED_REQUEST = 499  # nginx's code for a client that left before its answer
MAX_PATH = 200  # characters of a path that are logged


def configure(level: str, form: Literal["text", "json"], process: str) -> None:
    """Every logger of the process, uvicorn's included, to standard error.

    Args:
        process: what this process is called in its lines.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    handler.addFilter(partial(_add_facts, process))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def _add_facts(process: str, record: logging.LogRecord) -> bool:
    record.request_id, record.own_process = request_id.get(), process
    if record.name.startswith("uvicorn"):  # which logs everything, errors or not, as uvicorn.error
        record.name = "service.http"
    return True


def note(**facts: Any) -> None:
    """Add facts to the access line of the request that is being served."""
    if (noted := _noted.get()) is not None:
        noted.update(facts)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


class TextFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(source)s: %(message)s%(where)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return _time(record)

    def format(self, record: logging.LogRecord) -> str:
        name = getattr(record, "request_id", "")
        record.where = f" [{name}]" if name else ""
        record.source = " ".join(filter(None, (getattr(record, "own_process", ""), record.name)))
        return super().format(record)


class JsonFormatter(logging.Formatter):
    """One object a line: time, level, logger, message, request_id, what the line adds, exception."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "process": getattr(record, "own_process", ""),
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
    """One line about a request, when its answer has left.

    It has what note() was told: model, steps, n, outcome, queue and denoise time of a request for images. The query
    and the body are not in it: seed, class and prompt are the caller's business.
    """

    def __init__(self, scope: Scope):
        self._scope, self._started, self._status = scope, time.monotonic(), 0
        self._noted: dict[str, Any] = {}
        _noted.set(self._noted)

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
        usual = path in READINESS or (path in PROBES and self._status < 400)
        text = "%(method)s %(path)s %(status)d in %(seconds).3f s" + (" for %(key)s" if fields["key"] else "")
        text += "".join(f" {name}=%({name})s" for name in self._noted)
        fields |= self._noted
        access.log(logging.DEBUG if usual else logging.INFO, text, fields, extra={"fields": fields})
