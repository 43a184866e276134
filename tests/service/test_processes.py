"""The supervisor, the engine and two HTTP workers, over real sockets: what the death of each process costs."""

import os
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from benchmarks import client
from service.settings import ModelEntry
from service.supervisor import ENGINE_DIED, SILENT_POLLS, WORKERS_FAIL, Pulse
from service.web.worker import NICE
from tests.service.networks import Gated, entry, simulated
from tests.service.process import QUERY, SHORT, WATCHER, failed_start, two_workers
from tests.service.sockets import connect, head, reset
from tests.waiting import wait_until

# Of the child that starts next, once the file is there.
DIES_SLOWLY = """
import json, os, pathlib, sys, time
doomed = pathlib.Path({folder!r}, "doomed")
if "-c" in sys.orig_argv and doomed.exists():
    doomed.unlink()
    os.close(json.loads(sys.orig_argv[-1])["control"])
    time.sleep(1)
    os._exit(7)
"""


def test_a_worker_imports_no_torch_and_stays_small(checkpoints: Path, tmp_path: Path) -> None:
    with two_workers(checkpoints, tmp_path) as service:
        assert service.ask().status_code == 200
        for worker in (*service.workers(), psutil.Process(service.supervisor.pid)):
            assert not any("torch" in file.path for file in worker.memory_maps())
            assert worker.memory_full_info().uss < 100 * 1024 * 1024


def test_a_killed_worker_costs_its_own_connections_only(checkpoints: Path, tmp_path: Path) -> None:
    with two_workers(checkpoints, tmp_path) as service, ThreadPoolExecutor(2) as pool:
        assert service.ask().status_code == 200
        (doomed, lost), (_, kept) = service.ask_each_worker().items()
        answers = [pool.submit(session.post, "/generate", params=QUERY) for session in (lost, kept)]
        wait_until(lambda: service.metric("diffusion_running_slots") == 2)
        os.kill(doomed, signal.SIGKILL)
        assert isinstance(answers[0].exception(), httpx.TransportError)
        wait_until(lambda: service.metric("diffusion_running_slots") == 1)  # its work has ended
        assert service.metric("diffusion_cancelled_evaluations_saved_total") > 0
        assert answers[1].result().status_code == 200
        wait_until(lambda: len(service.workers()) == 2)
        assert doomed not in {worker.pid for worker in service.workers()}
        assert service.metric("diffusion_requests_total", outcome="ok") == 2  # what it had counted is kept
        for session in service.ask_each_worker().values():
            assert session.post("/generate", params=SHORT).status_code == 200
        assert service.metric("diffusion_requests_total", outcome="ok") == 4
        assert "has ended with code -9: starting another one" in service.log


def test_a_scrape_of_any_worker_includes_every_answer(checkpoints: Path, tmp_path: Path) -> None:
    with two_workers(checkpoints, tmp_path, models={"dit": simulated(checkpoints / "dit", 1)}) as service:
        sessions, other = list(service.ask_each_worker().values()), ""
        for count in range(1, 21):
            assert sessions[count % 2].post("/generate", params=SHORT).status_code == 200
            other = sessions[(count + 1) % 2].get("/metrics").text
            assert client.metric(other, "diffusion_requests_total", outcome="ok") == count
        assert client.metric(other, "diffusion_worker_connections") >= 2


def test_quotas_are_those_of_the_service(checkpoints: Path, tmp_path: Path) -> None:
    keys = {"alice": {"key": "alice-has-a-secret-key", "concurrency": 1}}
    keys |= {"bob": {"key": "bob-has-another-secret", "requests_per_second": 1e-6, "burst": 3}}
    alice, bob = ({"X-API-Key": key["key"]} for key in keys.values())
    keys |= {"watcher": {"key": WATCHER}}
    with two_workers(checkpoints, tmp_path, api_keys=keys) as service, ThreadPoolExecutor(1) as pool:
        (first, one), (_, other) = service.ask_each_worker().items()
        statuses = [
            session.post("/generate", params=SHORT, headers=bob).status_code for session in (one, other) * 3
        ]
        assert statuses == [200, 200, 200, 429, 429, 429]
        pool.submit(one.post, "/generate", params=QUERY, headers=alice)
        wait_until(lambda: service.metric("diffusion_key_requests_total", key="alice", outcome="accepted") == 1)
        assert other.post("/generate", params=SHORT, headers=alice).status_code == 429
        os.kill(first, signal.SIGKILL)  # and with it goes the request that held the place
        wait_until(lambda: other.post("/generate", params=SHORT, headers=alice).status_code == 200)


def test_a_stuck_worker_is_replaced(checkpoints: Path, tmp_path: Path) -> None:
    """Even with one request open; and its place in the quota of its key is free again."""
    keys = {"alice": {"key": "alice-has-a-secret-key", "concurrency": 1}, "watcher": {"key": WATCHER}}
    settings = {"models": {"dit": simulated(checkpoints / "dit", 100)}, "api_keys": keys, "max_steps": 1000}
    headers = {"X-API-Key": "alice-has-a-secret-key"}
    with two_workers(checkpoints, tmp_path, **settings) as service, ThreadPoolExecutor(1) as pool:
        (stuck, one), (kept, other) = service.ask_each_worker().items()
        lost = pool.submit(one.post, "/generate", params=QUERY | {"steps": 1000}, headers=headers)
        wait_until(lambda: service.metric("diffusion_running_slots") == 1)
        os.kill(stuck, signal.SIGSTOP)
        assert isinstance(lost.exception(), httpx.TransportError)
        assert "has given no sign of life for 5 s" in service.log
        wait_until(lambda: other.post("/generate", params=SHORT, headers=headers).status_code == 200)
        wait_until(
            lambda: len(pids := {worker.pid for worker in service.workers()} - {stuck}) == 2 and kept in pids
        )


def test_a_worker_that_dies_slowly_at_its_start_costs_no_other_one(checkpoints: Path, tmp_path: Path) -> None:
    """Its end of the control is closed then, which the supervisor may see for long before it can replace it."""
    (tmp_path / "sitecustomize.py").write_text(DIES_SLOWLY.format(folder=str(tmp_path)))
    with two_workers(checkpoints, tmp_path, modules=tmp_path) as service:
        doomed, kept = service.workers()
        (tmp_path / "doomed").touch()
        doomed.kill()
        wait_until(lambda: "has ended with code 7" in service.log)
        wait_until(lambda: len(service.workers()) == 2)
        assert "has given no sign of life" not in service.log
        assert kept in service.workers()


def test_only_a_worker_that_goes_on_being_silent_is_stuck() -> None:
    """Looks are counted and not seconds, because a machine that sleeps makes no looks."""
    pulse = Pulse()
    assert not any(pulse.stops(beat) for beat in [1.0] * SILENT_POLLS + [2.0] * SILENT_POLLS)
    assert [pulse.stops(2.0) for _ in range(3)] == [True, False, False]  # told once


def test_on_one_core_the_engine_goes_first(checkpoints: Path, tmp_path: Path) -> None:
    allowed, own = os.sched_getaffinity(0), psutil.Process().nice()
    os.sched_setaffinity(0, {min(allowed)})
    try:
        with two_workers(checkpoints, tmp_path) as service:
            assert service.engine().nice() == own
            assert [worker.nice() for worker in service.workers()] == [own + NICE] * 2
    finally:
        os.sched_setaffinity(0, allowed)


def test_a_client_that_leaves_takes_its_work_along_within_a_step(checkpoints: Path, tmp_path: Path) -> None:
    settings = {"models": {"dit": entry(Gated, folder=str(tmp_path))}, "keep_alive_seconds": 3600}
    with two_workers(checkpoints, tmp_path, **settings) as service, ThreadPoolExecutor(1) as pool:
        sessions = service.ask_each_worker()
        (tmp_path / "closed").touch()
        with connect(service.url) as leaving:
            leaving.sendall(head("POST", "/generate?model=dit&class=0&steps=50&guidance=1"))
            wait_until((tmp_path / "waits").exists)  # in its first step
            beside = sessions.pop(service.worker_of(leaving.getsockname()[1]))
            (other,) = sessions.values()
            answer = pool.submit(other.post, "/generate", params=QUERY | {"steps": 50})
            reset(leaving)

        def cancelled() -> bool:  # its worker knows, and has told the engine
            text = beside.get("/metrics").text
            return client.metric(text, "diffusion_requests_total", outcome="cancelled") == 1

        wait_until(cancelled)
        (tmp_path / "closed").unlink()
        assert answer.result().status_code == 200
        assert service.metric("diffusion_evaluations_total") == 1 + 50
        assert service.metric("diffusion_cancelled_evaluations_saved_total") == 49


def test_a_killed_engine_is_told_to_every_open_request(checkpoints: Path, tmp_path: Path) -> None:
    with two_workers(checkpoints, tmp_path) as service, ThreadPoolExecutor(2) as pool:
        sessions = service.ask_each_worker().values()
        answers = [pool.submit(session.post, "/generate", params=QUERY) for session in sessions]
        wait_until(lambda: service.metric("diffusion_running_slots") == 2)
        children = service.children()
        service.engine().kill()
        for answer in answers:
            assert answer.result().status_code == 503
            assert "the engine has stopped" in answer.result().json()["detail"]
        assert service.supervisor.wait(timeout=60) == ENGINE_DIED
        assert psutil.wait_procs(children, timeout=60)[1] == []


def test_children_end_with_a_killed_supervisor(checkpoints: Path, tmp_path: Path) -> None:
    with two_workers(checkpoints, tmp_path) as service:
        children = service.children()
        service.supervisor.kill()
        assert psutil.wait_procs(children, timeout=60)[1] == []
    assert "Traceback" not in service.log


def test_children_ignore_the_signals_of_a_terminal(checkpoints: Path, tmp_path: Path) -> None:
    with two_workers(checkpoints, tmp_path) as service:
        before = {child.pid for child in service.children()}
        for child in service.children():
            child.send_signal(signal.SIGINT)
            child.send_signal(signal.SIGTERM)
        assert service.ask().status_code == 200
        assert {child.pid for child in service.children()} == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_two_workers_drain_at_a_signal(checkpoints: Path, tmp_path: Path, number: signal.Signals) -> None:
    with two_workers(checkpoints, tmp_path) as service, ThreadPoolExecutor(2) as pool:
        sessions = service.ask_each_worker().values()
        answers = [pool.submit(session.post, "/generate", params=QUERY) for session in sessions]
        wait_until(lambda: service.metric("diffusion_running_slots") == 2)
        service.supervisor.send_signal(number)
        assert [answer.result().status_code for answer in answers] == [200, 200]
        assert service.supervisor.wait(timeout=60) == 0
        assert "Traceback" not in service.log


def test_workers_that_cannot_start_end_the_service(checkpoints: Path, tmp_path: Path) -> None:
    (tmp_path / "uvicorn.py").write_text("raise SystemExit(7)")  # found before the real one
    ended = failed_start(models={"dit": simulated(checkpoints / "dit", 1)}, modules=tmp_path)
    assert ended.returncode == WORKERS_FAIL
    said = re.findall("worker 1 has ended with code 7: (.*)", ended.stderr)
    assert said == ["starting another one"] * 4 + ["at its start 5 times in 30 s"]


def test_a_broken_checkpoint_is_one_sentence(checkpoints: Path) -> None:
    ended = failed_start(models={"dit": ModelEntry(checkpoint=checkpoints / "nowhere")})
    assert ended.returncode == 2
    assert " CRITICAL engine service.engine_process: error: model dit: " in ended.stderr
    assert ended.stderr.count("\n") == 1
