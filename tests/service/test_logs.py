"""Logs of the real process: one line a request, machine-readable where asked for, and never a secret."""

import json
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.client import reserved_port
from service.observe import logs
from tests.service.networks import Fragile, entry
from tests.service.process import serving
from tests.waiting import wait_until

KEY = "alice-has-a-secret-key"
NAMED = {"X-Request-Id": "my-request", "Authorization": f"Bearer {KEY}"}


@contextmanager
def logged(checkpoints: Path, folder: Path, **settings: Any) -> Iterator[tuple[str, list[str]]]:
    """A server's address, and its log: complete when the block has ended."""
    lines: list[str] = []
    with (folder / "log").open("w+") as log:
        with serving(checkpoints, log, **settings) as (process, url):
            yield url, lines
            process.terminate()
            assert process.wait(timeout=60) == 0
        log.seek(0)
        lines.extend(log.read().splitlines())


def test_json_lines_name_the_request_and_never_the_key(checkpoints: Path, tmp_path: Path) -> None:
    settings = {"log_format": "json", "log_level": "debug", "api_keys": {"alice": KEY}}
    with logged(checkpoints, tmp_path, **settings) as (url, lines):
        query = "/generate?model=dit&class=0&steps=2"
        assert httpx.post(url + query, headers=NAMED).status_code == 200
        assert httpx.post(url + query, headers={"X-API-Key": "a wrong-key"}).status_code == 401
        assert httpx.get(f"{url}/%0aforged%20line", headers=NAMED).status_code == 404
        assert httpx.get(f"{url}/livez").status_code == 200
    parsed = [json.loads(line) for line in lines]  # also those of uvicorn and of the libraries
    assert {"time", "level", "logger", "message"} <= set.intersection(*(set(line) for line in parsed))
    access = [line for line in parsed if line["logger"] == "service.access"]
    answered = {line["path"]: line for line in access if line["status"] != 401}
    done = answered["/generate"]
    assert (done["method"], done["status"], done["level"]) == ("POST", 200, "info")
    assert (done["request_id"], done["key"]) == ("my-request", "alice")
    assert 0 < done["seconds"] < 30
    assert (done["model"], done["steps"], done["n"], done["outcome"]) == ("dit", 2, 1, "ok")
    assert done["queue_seconds"] + done["denoise_seconds"] <= done["seconds"] + 1e-3  # each rounded
    assert answered["/%0aforged%20line"]["status"] == 404
    assert answered["/livez"]["level"] == "debug"  # probes come every few seconds
    assert "model" not in answered["/livez"]
    assert not [line for line in parsed if "uvicorn" in line["logger"]]
    refused = [line for line in access if line["status"] == 401]
    assert [line["key"] for line in refused] == [""]
    assert KEY not in "".join(lines)
    assert "wrong-key" not in "".join(lines)


def test_text_logs_have_a_line_for_each_request_and_stack_traces(tmp_path: Path) -> None:
    with logged(tmp_path, tmp_path, models={"dit": entry(Fragile)}) as (url, lines):
        assert httpx.post(f"{url}/generate?model=dit&class=1", headers=NAMED).status_code == 500
        assert httpx.get(f"{url}/readyz").status_code == 200
    failed = [line for line in lines if "service.access: POST /generate 500 in " in line]
    assert [line.partition(" s ")[2] for line in failed] == ["model=dit steps=10 n=1 outcome=error [my-request]"]
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00 INFO ", failed[0])  # UTC, as in JSON logs
    assert "RuntimeError: class 1 breaks this model" in lines
    assert not any("GET /readyz" in line for line in lines)  # debug, also the many 503 before the first 200
    assert not any("uvicorn" in line for line in lines if not line.startswith(" "))  # but in stack traces


@pytest.mark.parametrize("form", ["text", "json"])
def test_one_line_says_where_it_listens_when_it_is_ready(checkpoints: Path, tmp_path: Path, form: str) -> None:
    with (
        reserved_port() as metrics_port,
        logged(checkpoints, tmp_path, log_format=form, metrics_port=metrics_port) as (url, lines),
    ):
        wait_until(lambda: "listening" in (tmp_path / "log").read_text())
    (said,) = [line for line in lines if "listening" in line]
    assert url in said
    if form == "json":
        told = json.loads(said)
        assert (told["urls"], told["logger"]) == ([url], "service.supervisor")
        assert len(told["metrics_urls"]) == 1
        assert told["metrics_urls"][0].endswith("/metrics")
    order = [name for line in lines for name in ("is warm", "listening", "stopping") if name in line]
    assert order == ["is warm", "is warm", "listening", "stopping"]


def test_uvicorns_lines_have_a_name_of_ours() -> None:
    record = logging.LogRecord("uvicorn.error", logging.WARNING, __file__, 1, "any", (), None)
    assert logs._add_facts("worker-1", record)
    assert record.name == "service.http"


def test_a_failure_outside_of_the_application_names_its_request(capsys: pytest.CaptureFixture[str]) -> None:
    record = logging.LogRecord("any", logging.ERROR, __file__, 1, "it %s", ("broke",), None)
    token = logs.request_id.set("my-request")
    try:
        raise ValueError("on purpose")
    except ValueError:
        record.exc_info = sys.exc_info()
        assert logs._add_facts("worker-1", record)
    finally:
        logs.request_id.reset(token)
    said = json.loads(logs.JsonFormatter().format(record))
    assert (said["message"], said["level"], said["request_id"]) == ("it broke", "error", "my-request")
    assert said["exception"].endswith("ValueError: on purpose")
    assert logs.TextFormatter().format(record).splitlines()[0].endswith("ERROR worker-1 any: it broke [my-request]")
