"""The variants of a network on a CPU, each a library and a precision, as one function of torch's tensors.

Letters: B rows, C channels, H height, W width.
"""

import copy
import importlib
import time
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from models.checkpoint import ModelConfig, save_checkpoint
from models.graph import trace
from models.precision import multiplies_bfloat16
from models.quantization import quantize
from service.backend import PRECISIONS, CompiledNetwork
from training.export import export_onnx
from training.quantize import measure

Forward = Callable[..., Tensor]  # x [B, C, H, W] float32, t [B], y [B] (and r, w [B]) -> [B, C, H, W]

BASELINE = "torch float32"  # the variant with which all others are compared
BACKENDS = {"torch": "torch", "openvino": "OpenVINO"}  # by DIFFUSION_BACKEND, the library's name in a variant
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CPU = torch.device("cpu")
RANGE_ROWS = 16  # of the forward that gives int8 its ranges
# OpenVINO's graphs by network, because tracing a large network takes long.
TRACED: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
LEAST_FORWARDS = 2  # that are timed in a round
# Highest root mean square of the difference to BASELINE, over that of BASELINE. A larger one is another network.
TOLERANCE = 0.2


def available_variants(compiled: bool = False) -> list[str]:
    """The variants that this machine has, in the order of the tables; compiled: also those of torch.compile."""
    bfloat16 = multiplies_bfloat16(CPU)
    variants = [BASELINE, "torch bfloat16", *["torch.compile float32", "torch.compile bfloat16"] * compiled]
    if find_spec("openvino") is not None:
        variants += ["OpenVINO float32", *["OpenVINO bfloat16"] * bfloat16, "OpenVINO int8"]
    if all(find_spec(name) is not None for name in ("onnx", "onnxscript", "onnxruntime")):
        variants += ["ONNX Runtime float32"]
    return variants


def build(variant: str, network: nn.Module, config: ModelConfig) -> Forward:
    """The network as one of available_variants.

    Args:
        network: in float32; it is not changed.
    """
    library, _, kind = variant.rpartition(" ")
    if library == "OpenVINO":
        return openvino(kind, network, config)
    if library == "ONNX Runtime":
        return onnx_runtime(network, config)
    dtype = DTYPES[kind]
    model = copy.deepcopy(network).to(dtype)
    if library == "torch.compile":
        import torch._inductor.config as inductor

        inductor.freezing = True  # weights are laid out for the processor once; it stays set in this process
        model = torch.compile(model, dynamic=True)
    return lambda x, *others: model(x.to(dtype), *others)


def openvino(kind: str, network: nn.Module, config: ModelConfig) -> Forward:
    """Compiled as the service compiles it. int8 has the ranges of one forward, because ranges change no time."""
    if network not in TRACED:
        TRACED[network] = trace(network, config)
    graph = TRACED[network].clone()
    if kind == "int8":
        quantize(graph, measure(graph, iter([inputs(config, RANGE_ROWS)])))
        kind = "bfloat16" if multiplies_bfloat16(CPU) else "float32"  # of the operations that are not int8
    return CompiledNetwork(graph, PRECISIONS[DTYPES[kind]], torch.get_num_threads())


def onnx_runtime(network: nn.Module, config: ModelConfig) -> Forward:
    """The file that `run.py export --onnx` writes, in float32."""
    onnxruntime: Any = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with TemporaryDirectory() as folder:
        save_checkpoint(Path(folder), network, config)
        file = export_onnx(Path(folder), Path(folder, "network.onnx"))
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_inputs()]

    def forward(*given: Tensor) -> Tensor:
        arrays = {name: tensor.numpy() for name, tensor in zip(names, given, strict=True)}
        return torch.from_numpy(session.run(None, arrays)[0])

    return forward


def inputs(config: ModelConfig, rows: int) -> tuple[Tensor, ...]:
    """x, t, y and, of a network that was tuned for few steps, r and w; the same at every call."""
    x = torch.randn(rows, *config.image_shape, generator=torch.Generator().manual_seed(rows))
    t, y = torch.linspace(100.0, 900.0, rows), torch.arange(rows) % config.num_classes
    return (x, t, y, t / 2, torch.ones(rows)) if config.is_few_step else (x, t, y)


@torch.inference_mode()
def check(forward: Forward, base: Forward, given: tuple[Tensor, ...]) -> None:
    """Compare one forward with the baseline's.

    Raises:
        ValueError: they differ by more than TOLERANCE.
    """
    wanted = base(*given).float()
    difference = float((forward(*given).float() - wanted).norm() / wanted.norm())
    if not difference < TOLERANCE:
        raise ValueError(f"its images are {difference:.0%} away from those of {BASELINE}")


@torch.inference_mode()
def seconds_of(forward: Forward, given: tuple[Tensor, ...], seconds: float) -> float:
    """The median seconds of a forward, after one that is not counted; `seconds`: how long to go on."""
    forward(*given)
    times, until = list[float](), time.monotonic() + seconds
    while time.monotonic() < until or len(times) < LEAST_FORWARDS:
        started = time.perf_counter()
        forward(*given)
        times.append(time.perf_counter() - started)
    return median(times)


def compare(
    forwards: Mapping[str, Forward], config: ModelConfig, counts: Iterable[int], rounds: int, seconds: float
) -> dict[str, dict[str, float]]:
    """Rows a second, by variant and row count: the median of rounds in which every variant runs once.

    A machine is not equally fast at all times, so the rounds of one row count follow each other.

    Args:
        seconds: of a variant in a round.
    """
    found: dict[str, dict[str, float]] = {variant: {} for variant in forwards}
    for rows in counts:
        given = inputs(config, rows)
        times: dict[str, list[float]] = {variant: [] for variant in forwards}
        for _ in range(rounds):
            for variant, forward in forwards.items():
                times[variant].append(seconds_of(forward, given, seconds))
        for variant in forwards:
            found[variant][str(rows)] = rows / median(times[variant])
    return found
