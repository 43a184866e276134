"""OpenVINO behind the same runner: a network compiled for this CPU, which takes and returns torch's tensors.

A checkpoint's stored graph is compiled when the model is loaded. Where there is none, torch serves, and a process
of its own traces the network meanwhile, which takes some seconds of a core and may fail in any way.
"""

import logging
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.checkpoint import CheckpointError, load_checkpoint
from models.extras import how_to_install
from models.files import CONFIG, GRAPH, WEIGHTS, sha256_of
from models.graph import core, example, import_openvino, read_graph, reason, write_graph
from models.quantization import RANGES, int8_model
from service import child
from service.engine.runner import ModelRunner
from service.settings import SettingsError

logger = logging.getLogger(__name__)

# How far a forward may lie from torch's, by dtype: root mean square of the difference over that of torch's output.
# The shipped networks are 4e-7 off in float32. In bfloat16 both backends are 3e-3 to 5e-3 off from float32.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
INT8_TOLERANCE = 0.2  # the shipped networks are 0.02 and 0.03 off
PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16"}
SPARE_ROWS = 5  # see CompiledNetwork
POLL_SECONDS = 0.05  # between two looks at a process that traces
TRACE_SECONDS = 600.0  # at most; deterministic requests wait for it. The shipped UNet takes 10 s of a core
NICENESS = 5  # of that process: a quarter of a core beside an engine that keeps all busy. 19 would be 1.5 %
WHY = "why"  # in the folder of a process that traces: what went wrong


class NotCompiled(Exception):
    """Why torch serves a model; one sentence."""


@dataclass(frozen=True)
class OpenVINO:
    """The backend of this process.

    Args:
        threads: of the CPU, for each network.
        int8: products are in int8, which torch cannot compute: models that OpenVINO cannot serve are refused.
    """

    threads: int
    int8: bool = False

    def serve(self, name: str, runner: ModelRunner, folder: Path | None, architecture: str | None) -> ModelRunner:
        """The runner that serves a model from now on: a compiled one, or torch's.

        Where the network is yet to be traced, torch's has `make_faster`. Any other reason to keep torch is logged.

        Args:
            folder: of the checkpoint; None for fresh weights.
            architecture: that the operator named instead of the checkpoint's own.

        Raises:
            SettingsError, CheckpointError: why the model cannot be int8.
        """
        if self.int8:
            return self._serve_int8(name, runner, folder, architecture)
        if folder is None or runner.dtype not in PRECISIONS:
            why = "it has fresh weights" if folder is None else f"OpenVINO has no {runner.dtype} on a CPU"
            logger.info("model %s stays on torch: %s", name, why)
            return runner
        try:
            if (folder / GRAPH).is_file():
                return self.compile(runner, folder, folder / WEIGHTS, architecture)
        except CheckpointError as error:
            logger.warning("model %s is traced: %s", name, error)
        except Exception as error:  # whatever a graph may do to a compiler
            logger.warning("model %s stays on torch: %s", name, reason(error))
            return runner
        runner.make_faster = partial(self._trace, folder, architecture)
        return runner

    def _serve_int8(
        self, name: str, runner: ModelRunner, folder: Path | None, architecture: str | None
    ) -> ModelRunner:
        if folder is None or architecture is not None:
            what = "fresh weights" if folder is None else "an architecture of its own"
            text = f"model {name} has {what}: serve a checkpoint of this project's networks, or another type"
            raise SettingsError(f"DIFFUSION_DTYPE is int8, and {text}")
        try:
            if (folder / GRAPH).is_file():
                return self.compile(runner, folder, folder / WEIGHTS, None)
            return self._trace(folder, None, runner, threading.Event())
        except CheckpointError as error:
            raise CheckpointError(f"model {name}: {error}") from error
        except Exception as error:  # also of an OpenVINO that cannot be imported, or without a temporary folder
            raise CheckpointError(f"model {name}: OpenVINO cannot run it in int8: {reason(error)}") from error

    def _trace(
        self, checkpoint: Path, architecture: str | None, runner: ModelRunner, stop: threading.Event
    ) -> ModelRunner:
        with traced(checkpoint, architecture, stop) as folder:
            return self.compile(runner, folder, checkpoint / WEIGHTS, architecture)

    def compile(self, runner: ModelRunner, folder: Path, weights: Path, architecture: str | None) -> ModelRunner:
        """A runner of the graph in a folder that gives what `runner` gives.

        Raises:
            CheckpointError: the graph is of another network, or there are no ranges for int8.
            NotCompiled, RuntimeError: it gives something else, its weights are others, or it cannot be compiled.
        """
        graph = read_graph(folder, weights, architecture)
        if sha256_of(weights) != runner.config.sha256:  # those of a training that goes on would be close enough
            raise NotCompiled(f"{weights} has been replaced since it was loaded")
        if self.int8:
            int8_model(graph, weights.parent, runner.config.sha256)
        network = CompiledNetwork(graph, PRECISIONS[runner.dtype], self.threads)
        compare(network, runner, INT8_TOLERANCE if self.int8 else TOLERANCE[runner.dtype])
        faster = runner.successor(network, runner.config)
        faster.backend, faster.is_int8 = "openvino", self.int8
        faster.ranges = sha256_of(weights.parent / RANGES) if self.int8 else ""
        for rows in faster.step_seconds:  # of a model that serves: each first time is slow, for it makes primitives
            faster.execute(faster.rehearsal(rows))
        return faster


class CompiledNetwork(nn.Module):
    """An openvino.Model with the inputs x, t, y and perhaps r and w, as a network on the CPU.

    Where the row count changes, OpenVINO prepares all operations anew: 4 to 10 ms of the shipped UNet, whose 8 rows
    take 14 to 17. So fewer rows than before are padded to the last count, until more than SPARE_ROWS padding rows
    were run.
    """

    def __init__(self, graph: Any, precision: str, threads: int):
        super().__init__()
        config = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,  # else all services of a machine would take the same cores
        }
        # OpenVINO keeps float32 on the way to an output. Without these, times of up to 1000 would be rounded to
        # bfloat16 before their sines are taken, and a forward of the shipped UNet 1.7e-2 off instead of 3e-3.
        waves = [node.output(0) for node in graph.get_ops() if node.get_type_name() in ("Sin", "Cos")]
        graph.add_outputs(waves)
        self._request = core().compile_model(graph, "CPU", config).create_infer_request()
        self._arrays: list[np.ndarray] = []  # the inputs of the last call
        self._spare = 0  # padding rows since the last step without any

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        """x [B, C, H, W], t [B], y [B] (and r, w [B]) -> [B, C, H, W] float32, which the next call overwrites."""
        rows, inputs = len(x), (x.float(), *others)
        spare = len(self._arrays[0]) - rows if self._arrays else -1
        self._spare = self._spare + spare if spare > 0 else 0
        if spare < 0 or self._spare > SPARE_ROWS:
            self._arrays, self._spare = [np.empty(each.shape, each.numpy().dtype) for each in inputs], 0
            tensor_of = import_openvino().Tensor
            for number, array in enumerate(self._arrays):  # at each call it would take 0.2 ms
                self._request.set_input_tensor(number, tensor_of(array, shared_memory=True))
        for array, tensor in zip(self._arrays, inputs, strict=True):
            array[:rows] = tensor.numpy()
        return torch.from_numpy(self._request.infer(share_outputs=True)[0][:rows])


@torch.inference_mode()
def compare(network: CompiledNetwork, runner: ModelRunner, limit: float) -> None:
    """One forward of both.

    Raises:
        NotCompiled: they differ by more than the limit.
    """
    x, *others = example(runner.config)
    wanted = runner.model(x.to(runner.dtype), *others).float()
    difference = float((network(x.to(runner.dtype), *others) - wanted).norm() / wanted.norm().clamp(min=1e-30))
    if not difference <= limit:  # a comparison with nan is false
        raise NotCompiled(f"a forward of OpenVINO differs from torch's by {difference:.1e}, more than {limit:g}")


def choose_backend(name: str, device: torch.device, dtype: torch.dtype, int8: bool = False) -> OpenVINO | None:
    """None is torch alone. auto takes OpenVINO on a CPU where it is installed.

    Raises:
        SettingsError: OpenVINO is wanted, or needed for int8, and cannot be had; with what to do about it.
    """
    installed = find_spec("openvino") is not None
    if int8:
        if device.type != "cpu":
            raise SettingsError("DIFFUSION_DTYPE is int8, which is for a CPU: set DIFFUSION_DEVICE to cpu")
        if name == "torch":
            text = "set DIFFUSION_BACKEND to openvino or auto"
            raise SettingsError(f"DIFFUSION_DTYPE is int8, which torch does not run: {text}")
        name = "openvino"
    if name == "openvino":
        if device.type != "cpu" or dtype not in PRECISIONS:
            text = "set DIFFUSION_DEVICE to cpu and DIFFUSION_DTYPE to float32, bfloat16 or auto"
            raise SettingsError(f"DIFFUSION_BACKEND is openvino: {text}, or use torch or auto")
        if not installed:
            what = "DIFFUSION_DTYPE is int8, which needs OpenVINO" if int8 else "DIFFUSION_BACKEND is openvino"
            raise SettingsError(f"{what}, but it is not installed: {how_to_install('cpu')}, or use auto")
    wanted = name != "torch" and device.type == "cpu" and installed
    return OpenVINO(torch.get_num_threads(), int8) if wanted else None


@contextmanager
def traced(checkpoint: Path, architecture: str | None, stop: threading.Event) -> Iterator[Path]:
    """A folder with the graph of a checkpoint's network, while the block runs.

    Raises:
        NotCompiled: the process that traces it has failed or takes too long, or stop was set.
    """
    with tempfile.TemporaryDirectory(prefix="stepwise-") as folder:
        tracer = child.start("service.backend", {"trace": [str(checkpoint), architecture or "", folder]}, [])
        until = time.monotonic() + TRACE_SECONDS
        try:
            while tracer.process.poll() is None:
                if stop.wait(POLL_SECONDS):
                    raise NotCompiled("the service is about to do something else")
                if time.monotonic() > until:
                    raise NotCompiled(f"tracing its network took more than {TRACE_SECONDS:g} s")
        finally:
            tracer.kill()
            tracer.close()
        if code := tracer.process.returncode:
            why = Path(folder) / WHY
            text = why.read_text() if why.is_file() else f"the process has ended with code {code}"
            raise NotCompiled(f"its network cannot be traced: {text}")
        yield Path(folder)


def main(given: dict[str, Any]) -> None:
    """In a process of its own. given: trace, which is a checkpoint, its architecture and a folder for the graph."""
    checkpoint, architecture, folder = given["trace"]
    os.nice(NICENESS)
    torch.set_num_threads(1)
    tempfile.tempdir = folder  # goes with the parent's block, also where this process is killed
    try:
        network, config = load_checkpoint(Path(checkpoint), architecture or None)
        write_graph(network, config, Path(folder), architecture or None)
        shutil.copy(Path(checkpoint) / CONFIG, folder)  # a graph is read together with what it was made of
    except Exception as error:
        (Path(folder) / WHY).write_text(reason(error) or type(error).__name__)
        sys.exit(1)
