"""Compares images of the engine with CUDA graphs with its own in another order, and with those of the plain runner.

python -m benchmarks.gpu.graphs

Both runners get the same requests in the same order. So only the way a step runs can change an image.
"""

import argparse
import random
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.device import DEVICE, DRY, DTYPE, graph_device, graph_runner, model_of, parse
from benchmarks.gpu.results import record_failures, record_result
from benchmarks.networks import SHIPPED
from models.samplers import PLAIN
from service.engine.core import EngineConfig, EngineCore
from service.engine.plan import compile_plans
from service.engine.request import Request
from service.engine.runner import ModelRunner
from service.wire.messages import SamplingParams

ROWS, PLAIN_ROWS = (2, 2) if DRY else (128, 16)
STEPS = (1, 2) if DRY else (1, 2, 5, 10, 20)
MANY, FEW = (3, 2) if DRY else (60, 30)  # requests

Images = dict[tuple[str, int], np.ndarray]  # by request and place in it


def requests(core: EngineCore, count: int, seed: int, deterministic: bool = False) -> list[Request]:
    """Random requests of one to three images with every sampler, without those that the noise schedule refuses."""
    rng, made, config = random.Random(seed), list[Request](), core.runners["model"].config
    for number in range(count):
        seeds = tuple(rng.getrandbits(53) for _ in range(rng.randint(1, 3)))
        # a shipped network takes up to 3 as an input, and only what lies above it takes two rows
        guidance = 1.0 if rng.random() < 0.4 else rng.uniform(1.1, 4.0)
        interval, sampler = (rng.choice([0.0, 0.0, 0.3]), 1.0), rng.choice(PLAIN)
        params = SamplingParams(
            "model", rng.randrange(10), rng.choice(STEPS), sampler, guidance, interval, seeds,
            deterministic=deterministic, trajectory=rng.random() < 0.2,
            **extras(rng, len(seeds), guidance != 1, config.image_shape),
        )  # fmt: skip
        try:
            plans = compile_plans(config, params)
        except ValueError:
            continue
        own = plans if params.mixtures else ()
        made.append(Request(str(number), params, plans[0], num_previews=rng.choice([0, 0, 2]), plans=own))
    return made


def extras(rng: random.Random, images: int, guided: bool, shape: tuple[int, int, int]) -> dict[str, Any]:
    """What only some requests have: mixtures of classes, two seeds, a class to lead away from, an image."""
    found, (channels, height, width) = dict[str, Any](), shape
    if rng.random() < 0.3:
        labels = rng.sample(range(10), rng.randint(2, 4))
        mixture = tuple((label, 1 / len(labels)) for label in labels)
        found |= {"mixtures": (mixture,) * images, "class_labels": (labels[0],) * images}
    if rng.random() < 0.2:
        found["slerps"] = tuple((rng.getrandbits(53), rng.random()) for _ in range(images))
    if guided and rng.random() < 0.3:
        found["negative_label"] = rng.randrange(10)
    if rng.random() < 0.3:
        kept = rng.choice([b"", bytes(rng.random() < 0.5 for _ in range(height * width))])
        found |= {"image": rng.randbytes(channels * height * width), "mask": kept}
        found["strength"] = rng.choice([1.0, rng.uniform(0.3, 1.0)])
    return found


def run(core: EngineCore, waiting: list[Request], order: int) -> Images:
    """Run the requests. Up to four arrive before each step; `order` is the seed of the order of arrival.

    Raises:
        RuntimeError: a request failed.
    """
    rng, images = random.Random(order), Images()
    rng.shuffle(waiting)
    while waiting or core.has_work:
        for _ in range(min(rng.randint(0, 4), len(waiting))):
            core.add(waiting.pop())
        for request in core.step().ended:
            if request.error:
                raise RuntimeError(request.error)
            images |= {(request.request_id, i): np.array(image) for i, image in request.images.items()}
    return images


def difference(a: Images, b: Images) -> dict[str, float]:
    """Differences of the same images, in levels of 0..255; "equal" counts identical images."""
    apart = [np.abs(a[key].astype(int) - b[key]) for key in a]
    largest = np.array([image.max() for image in apart])
    return {
        "images": len(a),
        "equal": int((largest == 0).sum()),
        "max": int(largest.max()),
        "p95_of_max": float(np.percentile(largest, 95)),
        "mean": round(float(np.mean([image.mean() for image in apart])), 4),
    }


def compare(name: str, dtype: torch.dtype) -> None:
    plain = ModelRunner(*model_of(name), DEVICE, dtype, ROWS)
    runners = {"graph": graph_runner(name, ROWS, graph_device(), dtype), "plain": plain}
    label, seen = {"model": name, "dtype": str(dtype).removeprefix("torch.")}, dict[str, list[Images]]()
    cores = {}
    for kind, runner in runners.items():
        core = cores[kind] = EngineCore({"model": runner}, EngineConfig(PLAIN_ROWS if kind == "plain" else None))
        core.warm_up("model")
        seen[kind] = [run(core, requests(core, MANY, 0), order) for order in (1, 1, 2)]
    facts: dict[str, Any] = {
        "graph_twice_same_order": difference(*seen["graph"][:2]),
        "plain_twice_same_order": difference(*seen["plain"][:2]),
        "graph_against_plain": difference(seen["graph"][0], seen["plain"][0]),
        "graph_in_another_order": difference(*seen["graph"][1:]),
    }
    record_result("graphs", **label, **facts)
    core = cores["graph"]
    if core.runners["model"].repeats_itself:
        once, again = (run(core, requests(core, FEW, 3, True), order) for order in (5, 6))
        record_result("deterministic mode in two orders", **label, **difference(once, again))


def main() -> None:
    parse(argparse.ArgumentParser(description=__doc__))
    for name in SHIPPED:
        for dtype in (DTYPE,) if DRY else (DTYPE, torch.float32):
            with record_failures("graphs", model=name, dtype=str(dtype)):
                compare(name, dtype)


if __name__ == "__main__":
    main()
