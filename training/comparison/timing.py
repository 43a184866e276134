"""Seconds of a step by the size of the image and the number of rows, and of the attention alone.

Measured on a CPU in a process of its own, in float32 and without gradients, as the campaign samples. All sizes take
turns, so that a slow minute of the machine falls on all of them. A timing beside other work is refused.
"""

import dataclasses
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kernels import attention
from models.checkpoint import ModelConfig, build_model
from models.dit_model import DIT, DITBlock
from models.schedule import NUM_TIMESTEPS
from training.config import TrainConfig
from training.info import config_info
from training.machine import describe_machine
from training.processes import Processes
from training.train import Trainer

SIDES = (16, 32, 64, 128)  # pixels
ROWS = (1, 2, 4, 8, 16, 32)
MOST = 8 * 128**2  # pixels of a forward
ROUNDS, TURN = 10, 0.1  # turns of each size, and seconds of a turn, which has at least one call
WARM_UP = 3  # calls
LOAD = 0.1  # share of the cores that other processes may use during a timing

Call = Callable[[], object]


def settings(config: TrainConfig) -> dict[str, Any]:
    """What a timing depends on, besides the machine."""
    return {name: getattr(config, name) for name in ("model", "arguments", "batch_size", "autocast", "threads")}


def time_network(config: TrainConfig, sides: Sequence[int] = SIDES, rounds: int = ROUNDS) -> dict[str, Any]:
    """timing: see measure; machine: as the process that measured saw it.

    Raises:
        ValueError: others used the machine meanwhile.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(measure, config, sides, rounds).result()
    load = found["timing"]["load"]
    if load is not None and load > LOAD:
        raise ValueError(
            f"other processes used {load:.0%} of the cores during the timing, at most {LOAD:.0%} is allowed: "
            "nothing was written, repeat it on a quiet machine"
        )
    return found


def measure(config: TrainConfig, sides: Sequence[int], rounds: int) -> dict[str, Any]:
    """Medians over all calls, by pixels a side, rows and tokens; FLOPs of one row; load: see Load."""
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    configs = {side: sized(config, side) for side in sides}
    networks = {side: build_model(known).eval() for side, known in configs.items()}
    calls: dict[Hashable, Call] = {
        ("step", side, rows): forward_call(network, configs[side], rows)
        for side, network in networks.items()
        for rows in ROWS
        if rows * side**2 <= MOST
    }
    transformers = [network for network in networks.values() if isinstance(network, DIT)]
    calls |= {("attention", tokens(network)): attention_call(network, "cpu") for network in transformers}
    with tempfile.TemporaryDirectory() as folder:
        config = dataclasses.replace(config, out=Path(folder) / "run")
        calls["train"] = Trainer(config, Processes(0, 1, torch.device("cpu"))).train_step
        seconds, load = in_turns(calls, rounds)
    timing: dict[str, Any] = {
        "step_seconds": {
            str(side): {str(key[2]): s for key, s in seconds.items() if key[:2] == ("step", side)} for side in sides
        },
        "step_flop": {str(side): config_info(known)["flops"] for side, known in configs.items()},
        "train_image_seconds": seconds["train"] / config.batch_size,
        "load": load,
    }
    if transformers:
        timing["attention_seconds"] = {str(tokens(n)): seconds["attention", tokens(n)] for n in transformers}
        timing["attention_flop"] = {str(tokens(n)): flops(attention_call(n, "meta")) for n in transformers}
    return {"settings": settings(config), "timing": timing, "machine": describe_machine()}


def sized(config: TrainConfig, side: int) -> ModelConfig:
    arguments = config.arguments | {"image_size": side}
    return ModelConfig(config.model, arguments, config.schedule, config.prediction)


def forward_call(model: nn.Module, config: ModelConfig, rows: int) -> Call:
    x, labels = torch.randn(rows, *config.image_shape), torch.arange(rows) % config.num_classes
    return torch.no_grad()(lambda: model(x, torch.full((rows,), NUM_TIMESTEPS / 2), labels))


def tokens(model: DIT) -> int:
    return (model.image_size // model.patch_size) ** 2


def attention_call(model: DIT, device: str) -> Call:
    """Scores, softmax and weighted sum of one row in one block, by the function that the block calls."""
    block = cast(DITBlock, model.blocks[0])
    qkv = torch.randn(1, tokens(model), block.qkv.out_features, device=device)
    return torch.no_grad()(lambda: attention(qkv, block.num_heads, block.num_kv_heads))


def flops(call: Call) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def in_turns(calls: dict[Hashable, Call], rounds: int) -> tuple[dict[Any, float], float | None]:
    """Median seconds of each call, and the load meanwhile."""
    found: dict[Any, list[float]] = {key: [] for key in calls}
    for call in calls.values():
        for _ in range(WARM_UP):
            run(call)
    load, parent = Load(), multiprocessing.parent_process()
    for _ in range(rounds):
        for key, call in calls.items():
            if parent and not parent.is_alive():
                sys.exit("the campaign has ended")
            spent = 0.0
            while spent < TURN:
                found[key].append(run(call))
                spent += found[key][-1]
    return {key: median(seconds) for key, seconds in found.items()}, load.share()


def run(call: Call) -> float:
    """Its seconds."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


class Load:
    """Measures the load of the machine by other processes from now on, including steal time of the hypervisor."""

    def __init__(self) -> None:
        self.before = cpu_seconds()

    def share(self) -> float | None:
        """Share of all cores, 0 to 1; None without /proc/stat."""
        now = cpu_seconds()
        if not self.before or not now:
            return None
        busy, whole, own = (b - a for a, b in zip(self.before, now, strict=True))
        return round(max(0.0, busy - own) / max(whole, 0.01), 4)


def cpu_seconds(table: Path = Path("/proc/stat")) -> tuple[float, float, float] | None:
    """CPU seconds so far: busy and total over all cores, and of this process; None without /proc/stat."""
    if not table.exists():
        return None
    ticks = [int(number) for number in table.read_text().splitlines()[0].split()[1:9]]  # guests count as users
    idle = ticks[3] + ticks[4]  # waiting for a disk is idle, too
    times = os.times()
    tick = os.sysconf("SC_CLK_TCK")
    return (sum(ticks) - idle) / tick, sum(ticks) / tick, times.user + times.system
