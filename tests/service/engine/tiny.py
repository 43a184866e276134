"""Tiny models, requests and the plain loop that the tests of the engine compare with.

Letters: R forward rows, C x H x W the image.
"""

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.checkpoint import ModelConfig, build_model
from models.samplers import SAMPLERS
from models.sampling import Further, Guidance, Known, sample, to_uint8
from service.engine.core import EngineConfig, EngineCore, Progress
from service.engine.launched import LaunchedStep
from service.engine.plan import compile_plans
from service.engine.request import ImageTask, Request
from service.engine.runner import ModelRunner
from service.observe.scoreboard import StepStats
from service.wire.messages import SamplingParams
from tests.waiting import PATIENCE, wait_until

CPU = torch.device("cpu")
_ids = count()

SIZES: dict[str, dict[str, Any]] = {
    "dit": {"image_size": 8, "image_channels": 1, "patch_size": 2, "hidden_dim": 32, "depth": 1, "num_heads": 4},
    "unet": {"image_size": 8, "image_channels": 1, "base_channels": 8, "channel_multipliers": (1, 2)},
}
PROCESSES = {"dit": ("flow", "x0"), "unet": ("cosine", "v")}  # schedule and prediction


def tiny_config(architecture: str = "dit") -> ModelConfig:
    """architecture: a key of SIZES; with few- before it, a network that takes r and w."""
    name = architecture.removeprefix("few-")
    if name != architecture:
        return ModelConfig(name, SIZES[name] | {"few_step": True}, guidance_range=(1.0, 3.0))
    return ModelConfig(name, SIZES[name], *PROCESSES[name])


def samplers_of(config: ModelConfig) -> list[str]:
    """Those that the model can do."""

    def fits(sampler: str) -> bool:
        with suppress(ValueError):
            return bool(config.table(sampler, 2))
        return False

    return list(filter(fits, SAMPLERS))


def tiny_model(architecture: str = "dit") -> nn.Module:
    """Random everywhere: a zero-initialised layer would hide what lies behind it."""
    torch.manual_seed(0)
    model = build_model(tiny_config(architecture))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.12)
    return model.eval().requires_grad_(False)


class Watched(nn.Module):
    """Keeps the row count of every forward."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner, self.num_classes = inner, inner.num_classes
        self.rows: list[int] = []

    def forward(self, x: Tensor, t: Tensor, y: Tensor, *others: Tensor) -> Tensor:
        self.rows.append(len(x))
        return self.inner(x, t, y, *others)


class Turnstile(nn.Module):
    """A model that costs nothing; once closed, every forward waits for a permit."""

    num_classes = 10

    def __init__(self) -> None:
        super().__init__()
        self.closed = False
        self.rows: list[int] = []  # of every forward that was entered
        self._permits = threading.Semaphore(0)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        self.rows.append(len(x))
        if self.closed and not self._permits.acquire(timeout=PATIENCE):
            raise TimeoutError("the test never let this step pass")
        return x / 2

    def close(self) -> None:
        self.rows.clear()
        self.closed = True

    def let_pass(self, steps: int) -> None:
        """Let so many steps end, and return when the one after them has been entered."""
        entered = len(self.rows) + steps
        self._permits.release(steps)
        wait_until(lambda: len(self.rows) >= entered)

    def open(self) -> None:
        self.closed = False
        self._permits.release(1_000)


class Cramped(nn.Module):
    """Has no memory for more than `room` rows; its output is that of `inner`, or x / 2."""

    num_classes = 10

    def __init__(self, room: int, inner: nn.Module | None = None, error: type[Exception] = torch.OutOfMemoryError):
        super().__init__()
        self.room, self.inner, self.error = room, inner, error

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        if len(x) > self.room:
            raise self.error
        return self.inner(x, t, y) if self.inner else x / 2


class RecordingRunner(ModelRunner):
    """Keeps the latents of finished images, which the pool forgets with the next occupant of their slot."""

    latents: dict[tuple[str, int], Tensor]  # [C, H, W] by request and index

    def launch(self, tasks: list[ImageTask]) -> LaunchedStep:
        launched = super().launch(tasks)
        for task in tasks:
            if task.step == task.last_step:
                self.latents[task.request.request_id, task.index] = self.pool.x[task.slot].clone()
        return launched


def recording_runner(model: nn.Module, config: ModelConfig, num_slots: int = 6) -> RecordingRunner:
    runner = RecordingRunner(model, config, CPU, torch.float32, num_slots)
    runner.latents = {}
    return runner


def make_params(model: str = "dit", **changes: Any) -> SamplingParams:
    defaults = {"class_label": 1, "num_steps": 4, "sampler": "ddim", "guidance_scale": 1.0}
    return SamplingParams(model, **{**defaults, "guidance_interval": (0.0, 1.0), "seeds": (5,), **changes})


def make_request(params: SamplingParams, config: ModelConfig | None = None, num_previews: int = 0) -> Request:
    plans = compile_plans(config or tiny_config(params.model), params)
    own = plans if params.mixtures else ()
    return Request(f"request {next(_ids)}", params, plans[0], num_previews=num_previews, plans=own)


def warm_core(runner: ModelRunner, model: str = "dit", max_rows: int = 6, **bounds: Any) -> EngineCore:
    core = EngineCore({model: runner}, EngineConfig(max_rows, **bounds))
    core.warm_up(model)
    return core


def stepping(core: EngineCore, arrivals: dict[int, list[Request]] | None = None) -> Iterator[Progress]:
    """Step until everything has ended.

    arrivals: requests by the number of the step before which they arrive.
    """
    arrivals = arrivals or {0: []}
    for now in range(10_000):
        for request in arrivals.get(now, ()):
            core.add(request)
        if not core.has_work and now >= max(arrivals):
            return
        yield core.step()
    raise AssertionError("the engine does not come to an end")


def drive(
    core: EngineCore, arrivals: dict[int, list[Request]] | None = None
) -> tuple[list[Request], list[StepStats]]:
    """The requests in the order in which they ended, and every step."""
    progress = list(stepping(core, arrivals))
    return [request for one in progress for request in one.ended], [one.stats for one in progress if one.stats]


def solo(
    model: nn.Module,
    config: ModelConfig,
    params: SamplingParams,
    index: int = 0,
    watch: Callable[[int, Tensor, Tensor], None] | None = None,
) -> Tensor:
    """Latents [C, H, W] of one image by the plain loop; watch: see models.sampling.sample."""
    table = config.table(params.sampler, params.num_steps, params.spacing, params.strength)
    label = params.class_labels[index] if params.class_labels else params.class_label
    labels, seeds, negative = torch.tensor([label]), torch.tensor([params.seeds[index]]), params.negative_label
    guidance = Guidance(
        params.guidance_scale, *params.guidance_interval, config.guidance_range, negative is not None
    )
    more: dict[str, Any] = {
        "guidance": guidance,
        "known": known_of(params, config.image_shape),
        "null_label": negative,
        "further": further_of(params, index),
        "slerps": params.slerps[index : index + 1],
        "watch": watch,
    }
    return sample(model, table, labels, seeds, config.image_shape, **more)[0]


def further_of(params: SamplingParams, index: int) -> Further | None:
    if not params.mixtures or not (mixture := params.mixtures[index]):
        return None
    labels, weights = zip(*mixture[1:], strict=True)
    return Further(torch.zeros(len(labels), dtype=torch.int64), torch.tensor(labels), torch.tensor(weights))


def known_of(params: SamplingParams, shape: tuple[int, int, int]) -> Known | None:
    if not params.image:
        return None
    C, H, W = shape
    pixels = torch.tensor(list(params.image), dtype=torch.float32).view(H, W, C).permute(2, 0, 1)
    free = torch.tensor(list(params.mask), dtype=torch.bool).view(H, W) if params.mask else None
    return Known(pixels / 127.5 - 1, free)


def picture_of(latent: Tensor, params: SamplingParams) -> np.ndarray:
    """[H, W, C] of the bytes that belong to a latent [C, H, W], and to the pixels that the request keeps."""
    picture = to_uint8(latent).permute(1, 2, 0).numpy()
    if not params.mask:
        return picture
    image = np.frombuffer(params.image, np.uint8).reshape(picture.shape)
    return np.where(np.frombuffer(params.mask, bool).reshape(*picture.shape[:2], 1), picture, image)


def random_image(rng: random.Random, shape: tuple[int, int, int] = (1, 8, 8)) -> dict[str, Any]:
    """Often none; else to start from, or to keep a part of, or both."""
    C, H, W = shape
    if rng.random() < 0.6:
        return {}
    free = rng.choice([b"", bytes(rng.random() < 0.5 for _ in range(H * W))])
    return {"image": rng.randbytes(C * H * W), "mask": free, "strength": rng.choice([1.0, rng.uniform(0.05, 1.0)])}


def random_between(rng: random.Random, n: int, guided: bool) -> dict[str, Any]:
    """Often none; else mixtures of up to four classes, another seed to start from, or a class to lead away from."""
    found: dict[str, Any] = {}
    if rng.random() < 0.5:
        mixtures = [random_mixture(rng) for _ in range(n)]
        found["mixtures"] = tuple(mixture if len(mixture) > 1 else () for mixture in mixtures)
        found["class_labels"] = tuple(mixture[0][0] for mixture in mixtures)
    if rng.random() < 0.4:
        found["slerps"] = tuple((rng.getrandbits(53), rng.choice([0.0, rng.random()])) for _ in range(n))
    if guided and rng.random() < 0.5:
        found["negative_label"] = rng.randrange(10)
    return found


def random_mixture(rng: random.Random) -> tuple[tuple[int, float], ...]:
    labels = rng.sample(range(10), rng.randint(1, 4))
    weights = [rng.uniform(0.1, 1.0) for _ in labels]
    return tuple((label, weight / sum(weights)) for label, weight in zip(labels, weights, strict=True))


def random_params(rng: random.Random, model: str, samplers: list[str]) -> SamplingParams:
    low, high = sorted((rng.random(), rng.random()))
    kind = rng.choice(["off", "on", "interval"])
    n = rng.randint(1, 3)
    return make_params(
        model,
        class_label=rng.randrange(10),
        num_steps=rng.randint(1, 12),
        sampler=rng.choice(samplers),
        spacing=rng.choice(["trailing", "trailing", "shifted"]),
        guidance_scale=1.0 if kind == "off" else rng.uniform(0.0, 4.0),
        guidance_interval=(low, high) if kind == "interval" else (0.0, 1.0),
        seeds=tuple(rng.getrandbits(53) for _ in range(n)),
        **random_image(rng),
        **random_between(rng, n, guided=kind != "off"),
    )
