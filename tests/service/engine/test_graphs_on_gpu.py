"""The runner of CUDA graphs on a GPU, against the plain runner."""

import random
from collections.abc import Iterator

import pytest
import torch

from service.engine.core import EngineConfig, EngineCore
from service.engine.graphs import CudaDevice, GraphRunner
from service.engine.runner import ModelRunner
from tests.service.engine.tiny import drive, make_params, make_request, random_params, tiny_config, tiny_model
from tests.service.pictures import difference


@pytest.fixture
def cuda_runners(request: pytest.FixtureRequest) -> Iterator[tuple[ModelRunner, GraphRunner]]:
    architecture, dtype = request.param
    device = torch.device("cuda")
    arguments = (tiny_config(architecture), device, dtype, 40)
    graphs = GraphRunner(tiny_model(architecture), *arguments, graph_device=CudaDevice(device))
    yield ModelRunner(tiny_model(architecture), *arguments), graphs
    torch.cuda.synchronize()


@pytest.mark.gpu
@pytest.mark.parametrize(
    "cuda_runners",
    [(a, d) for a in ("dit", "unet", "few-dit") for d in (torch.float32, torch.bfloat16)],
    indirect=True,
    ids=str,
)
def test_graphs_on_a_gpu_give_the_images_of_the_plain_runner(
    cuda_runners: tuple[ModelRunner, GraphRunner],
) -> None:
    images = []
    for runner in cuda_runners:
        core = EngineCore({"dit": runner}, EngineConfig(40))
        core.warm_up("dit")
        rng = random.Random(0)
        everyone = [make_request(random_params(rng, "dit", ["ddim", "ddpm", "dpmpp_2m"])) for _ in range(30)]
        for request in everyone:  # both models run under the plan of their own schedule
            for task, other in zip(request.tasks, make_request(request.params, runner.config).tasks, strict=True):
                task.plan = other.plan
        ended, _ = drive(core, {i // 3: everyone[i : i + 3] for i in range(0, 30, 3)})
        assert len(ended) == 30
        images.append([request.images[i] for request in everyone for i in range(len(request.tasks))])
    # A bucket may take another GEMM than the exact row count, so sums round differently; a stray row or a race
    # would give another picture altogether.
    tolerance = 2 if cuda_runners[0].dtype == torch.float32 else 12
    for plain, replayed in zip(*images, strict=True):
        assert difference(plain, replayed) <= tolerance


@pytest.mark.gpu
def test_no_launch_on_a_gpu_waits_for_the_device() -> None:
    """A copy from pageable memory does; the host would fall behind by a step, and the device idle."""
    device = torch.device("cuda")
    arguments = (tiny_model(), tiny_config(), device, torch.float32, 6)
    runner = GraphRunner(*arguments, graph_device=CudaDevice(device))
    runner.warm_up(6)
    kept = {"image": bytes(64), "mask": bytes([1, 0] * 32), "strength": 0.8}
    tasks = make_request(make_params(seeds=(1, 2), num_steps=4, trajectory=True, **kept)).tasks
    for slot, task in enumerate(tasks):
        task.slot = slot
    for step in range(tasks[0].last_step + 1):
        for task in tasks:
            task.step = step
        torch.cuda.set_sync_debug_mode("error")
        try:
            launched = runner.launch(tasks)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert len(launched.collect().points) == 2
