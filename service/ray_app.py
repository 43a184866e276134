"""The same service as replicas of Ray Serve: one engine a device, on as many machines as a Ray cluster has.

    DIFFUSION_... python -m service.ray_app --port 8000 replicas=2 gpus=0   # starts a cluster on this machine
    serve run service.ray_app:build replicas=2 max_replicas=8               # in the cluster that Ray finds

Needs the ray extra. Every replica answers every route of service/web/app.py and reads the DIFFUSION_ variables of
its own node: set them alike on all nodes. Ray routes to the less busy of two random replicas, and scales by the
backlog, the device seconds that accepted requests still need, and not by their number. docs/deployment.md says what
happens when a replica dies, and what Ray's proxy leaves out.
"""

import argparse
import asyncio
import importlib
import signal
from contextlib import suppress
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field

from models.extras import how_to_install
from service.local import create_app
from service.observe import logs
from service.settings import Settings, SettingsError, choose_models, load_settings, model_entries
from service.web.generation import RequestHandler
from service.wire.control import ANSWER_SECONDS

NAME = "stepwise"
BACKLOG = "diffusion_backlog_seconds"
HEALTH_SECONDS, POLL_SECONDS = 1.0, 0.1  # between checks, three of which must fail; while the engine warms up
LOOK_BACK_SECONDS, UPSCALE_SECONDS, DOWNSCALE_SECONDS = 15.0, 10.0, 300.0  # Ray reports every 10 s


class Scale(BaseModel):
    """What `key=value` arguments and a Serve configuration's `args` may say."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    replicas: int = Field(default=1, ge=1)  # at least
    max_replicas: int | None = Field(default=None, ge=1)  # at most; default: replicas, so that nothing scales
    gpus: float = Field(default=1.0, ge=0)  # of a replica; 0 on a CPU, a fraction for several on one GPU
    cpus: float = Field(default=1.0, ge=0)  # of a replica
    backlog_seconds: float = Field(default=0.08, gt=0)  # of a replica, that autoscaling aims at: docs/scaling.md
    models: str = ""  # names with commas between; default: all that are configured


class BacklogPolicy:
    """As many replicas as bring the backlog of each to target_seconds; Ray applies bounds and delays."""

    def __init__(self, target_seconds: float):
        self.target_seconds = target_seconds

    def __call__(self, context: Any) -> tuple[float, dict[str, Any]]:
        backlogs = (context.aggregated_metrics or {}).get(BACKLOG, {})  # seconds by replica
        return sum(backlogs.values()) / self.target_seconds, {}


class Replica:
    """What Ray asks of a replica besides its routes; serve.ingress adds the application."""

    app: FastAPI

    async def check_health(self) -> None:
        """Return once the engine is warm; raise when it has died or is silent, so that Ray starts another."""
        handler: RequestHandler = self.app.state.handler
        while True:
            if reason := handler.silence():
                raise RuntimeError(reason)
            if not handler.unreadiness():
                return
            await asyncio.sleep(POLL_SECONDS)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        board = self.app.state.handler.engine.board
        places = board.layout.places.items()
        return {BACKLOG: sum(board.total(column) for key, column in places if key[0] == "backlog_seconds")}


def build(scale: Scale) -> Any:
    """The Serve application, for `serve run` and Serve configurations; SettingsError before anything is started."""
    serve = _import_ray("ray.serve")
    settings = _choose(load_settings(), scale.models)

    def application() -> FastAPI:  # runs in the replica
        own = _choose(load_settings(), scale.models)
        logs.configure(own.log_level, own.log_format, "replica")
        return create_app(own)

    target = {"target_seconds": scale.backlog_seconds}
    return serve.deployment(
        name=NAME,
        ray_actor_options={"num_gpus": scale.gpus, "num_cpus": scale.cpus},
        max_ongoing_requests=settings.max_connections,  # so that the engine refuses, and says when to come again
        graceful_shutdown_timeout_s=settings.drain_seconds + ANSWER_SECONDS,
        health_check_period_s=HEALTH_SECONDS,
        autoscaling_config={
            "min_replicas": scale.replicas,
            "max_replicas": scale.max_replicas or scale.replicas,
            "look_back_period_s": LOOK_BACK_SECONDS,
            "upscale_delay_s": UPSCALE_SECONDS,
            "downscale_delay_s": DOWNSCALE_SECONDS,
            "policy": {"policy_function": "service.ray_app:BacklogPolicy", "policy_kwargs": target},
        },
    )(serve.ingress(application)(Replica)).bind()


def _import_ray(name: str) -> Any:
    """Ray is an extra."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SettingsError(f"Ray is not installed: {how_to_install('ray')}") from error


def _choose(settings: Settings, names: str) -> Settings:
    return choose_models(settings, names.split(",") if names else list(model_entries(settings)))


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"{text!r} must be key=value, with a key of {', '.join(Scale.model_fields)}")
    return name, value


def main() -> None:
    """Deploy, and drain at the first SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("scale", nargs="*", metavar="key=value", help=", ".join(Scale.model_fields))
    arguments = parser.parse_args()
    try:
        application = build(Scale.model_validate(dict(map(_pair, arguments.scale))))
    except ValueError as error:
        parser.error(str(error))
    ray, serve = _import_ray("ray"), _import_ray("ray.serve")
    ray.init("local")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # behind ray.init, which takes the signal for itself
    with suppress(KeyboardInterrupt):
        serve.start(http_options={"host": arguments.host, "port": arguments.port})
        serve.run(application, name=NAME)
        signal.pause()
    serve.delete(NAME)  # waits for the replicas, and thereby for their open requests
    serve.shutdown()


if __name__ == "__main__":
    main()
