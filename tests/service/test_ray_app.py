"""Ray Serve: what a replica tells Ray, and what cannot be deployed. Ray itself is not needed."""

import asyncio
import importlib.util
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from service import ray_app
from service.observe.scoreboard import EngineScoreboard, Layout, ModelStats, Scoreboard, State
from service.ray_app import BACKLOG, BacklogPolicy, Replica, Scale, _choose, _pair
from service.settings import Settings, SettingsError
from service.web.generation import RequestHandler
from tests.service.process import ROOT, environment


def replica(state: State = "ready", heartbeat: float = 0.0, **backlog: float) -> Replica:
    """Of a service with an engine in this state.

    Args:
        heartbeat: seconds from now.
        backlog: seconds of each model.
    """
    settings = Settings(heartbeat_seconds=5)
    board = Scoreboard(Layout(("dit", "unet"), ()), entries=2)
    engine_board = EngineScoreboard(board)
    engine_board.state(state)
    engine_board.beat(time.monotonic() + heartbeat)
    engine_board.stats({model: ModelStats(backlog_seconds=seconds) for model, seconds in backlog.items()})
    engine = SimpleNamespace(gone="", board=board, is_ready=state == "ready")
    handler: Any = RequestHandler.__new__(RequestHandler)
    object.__setattr__(handler, "engine", engine)
    object.__setattr__(handler, "settings", settings)
    made = Replica()
    vars(made)["app"] = SimpleNamespace(state=SimpleNamespace(handler=handler))
    return made


@pytest.mark.parametrize(("state", "heartbeat"), [("dead", 0.0), ("stopped", 0.0), ("ready", -6.0)])
def test_a_dead_or_silent_engine_is_not_healthy(state: State, heartbeat: float) -> None:
    asyncio.run(replica().check_health())
    with pytest.raises(RuntimeError, match=r"the engine has (stopped|been silent)"):
        asyncio.run(replica(state, heartbeat).check_health())


def test_a_replica_is_healthy_once_it_is_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_app, "POLL_SECONDS", 0)

    async def warms_up() -> None:
        warming = replica("starting")
        check = asyncio.ensure_future(warming.check_health())
        for _ in range(10):  # looks at the engine
            await asyncio.sleep(0)
        assert not check.done()
        warming.app.state.handler.engine.is_ready = True
        await check

    asyncio.run(warms_up())


def test_replicas_follow_the_backlog_of_all_models() -> None:
    reported = asyncio.run(replica(dit=0.25, unet=0.5).record_autoscaling_stats())
    assert reported == {BACKLOG: 0.75}
    metrics = {BACKLOG: {"first": reported[BACKLOG], "second": 0.25}}
    policy = BacklogPolicy(target_seconds=0.25)
    assert policy(SimpleNamespace(aggregated_metrics=metrics)) == (4.0, {})
    assert policy(SimpleNamespace(aggregated_metrics=None)) == (0, {})


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_one_sentence_says_how_to_get_it() -> None:
    command = [sys.executable, "-m", "service.ray_app", "--port", "0"]
    ended = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert "Ray is not installed: pip install 'stepwise-diffusion[ray]'" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_what_cannot_be_deployed_is_refused(checkpoints: Path) -> None:
    settings = Settings(checkpoints=checkpoints)
    assert list(_choose(settings, "unet").models) == ["unet"]
    assert set(_choose(settings, "").models) == {"dit", "unet"}
    with pytest.raises(SettingsError, match="no model vae: use some of dit, unet"):
        _choose(settings, "dit,vae")
    with pytest.raises(ValueError, match="'replicas' must be key=value, with a key of replicas, max_replicas"):
        _pair("replicas")
    for wrong in ({"replicas": 0}, {"backlog_seconds": 0}, {"replcas": 2}):
        with pytest.raises(ValidationError):
            Scale.model_validate(wrong)
