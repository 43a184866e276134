"""What measures a GPU runs on a CPU, too, so that it stays in step with the code. Figures mean nothing there."""

import asyncio
import io
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import gpu_report, kernels, steps
from benchmarks.gpu import (
    device,
    engine,
    graphs,
    load,
    machine,
    pipelines,
    poison,
    profile_step,
    results,
    served,
)
from benchmarks.serving.load import Answer
from benchmarks.serving.others.device import Settings
from benchmarks.serving.others.fastapi_batcher import Batcher
from benchmarks.serving.workloads import Closed, Kind, Open
from service.engine.core import EngineConfig, EngineCore
from service.engine.plan import compile_plan
from service.engine.runner import ModelRunner
from service.wire.messages import SamplingParams
from tests.benchmarks.results import read

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.skipif(not device.DRY, reason="is a dry run, for machines without a CUDA device"),
    pytest.mark.usefixtures("out"),
]


def test_kernels_and_steps_give_the_tables(out: Path) -> None:
    kernels.measure_all([1])
    steps.measure("dit", [1, 2], [1])
    found = gpu_report.read(out)
    cases = [case.kernel for case in kernels.cases(1)]
    assert [line.split(" | ")[0] for line in gpu_report.kernels(found).splitlines()[2:]] == [
        f"| {kernel}" for kernel in cases
    ]
    one, two = (result for result in read(out) if result["part"] == "steps")
    assert set(gpu_report.VARIANTS) | {"part", "model", "rows", "fused_us"} == set(one)
    assert set(one) - set(two) == {"compiled_us", "compiled_graph_us"}
    assert "| DiT, shipped | 2 |" in gpu_report.show(found)


def test_calls_take_turns_at_copies_of_their_inputs() -> None:
    seen: list[int] = []
    device.kernel_seconds(device.graph_device(), *(lambda n=n: seen.append(n) for n in range(3)))
    assert seen == [0, 1, 2]


def test_rivals_change_nothing_but_their_own_call(out: Path) -> None:
    before = kernels.norms.MAX_REGISTERS
    found = [case.kernel for case in kernels.rivals(256)]
    assert len(found) == 2
    changed = kernels.with_values(lambda: kernels.norms.MAX_REGISTERS, kernels.norms, MAX_REGISTERS=64)
    assert (changed(), kernels.norms.MAX_REGISTERS) == (64, before)


def test_the_page_has_the_kernels_that_are_timed() -> None:
    page = gpu_report.read(ROOT / "docs" / "gpu.jsonl")
    measured = {r["kernel"] for r in page if r["part"] == "kernel times" and "kernel" in r}
    assert {case.kernel for case in kernels.cases(1)} == measured


def test_a_plain_step_is_that_of_the_engine() -> None:
    """Both take rows through the same network, so their times may be compared."""
    model, config = device.model_of("dit")
    seen = []
    model.register_forward_pre_hook(lambda _, arguments: seen.append([t.shape for t in arguments]))
    steps.plain_step(model.to(device.DTYPE), config, 3)()
    runner = device.graph_runner("dit", 3, device.graph_device())
    runner.model.register_forward_pre_hook(lambda _, arguments: seen.append([t.shape for t in arguments]))
    runner.prepare(3)
    assert seen == [[(3, 3, 32, 32), (3,), (3,), (3,), (3,)]] * 2


def test_the_machine_and_the_profiler(out: Path) -> None:
    machine.main()
    profile_step.measure("dit", 1)
    versions, peaks, launches, profile = read(out)
    assert versions["torch"]
    assert peaks["copy_TB_s"] >= 0
    assert set(launches) == {"part", "eager_launch_us", "graph_launch_us"}
    assert profile["kernels"] > 100


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("_convolution_kernel", "convolutions"),
        ("_group_norm_kernel", "norms"),
        ("_deferred_sum_kernel", "sums and joins"),
        ("nvjet_tst_64x8_64x16_4x1_v_bz_TNT", "products"),
        ("void at::native::vectorized_elementwise_kernel", "other"),
    ],
)
def test_kernels_have_a_kind(kernel: str, kind: str) -> None:
    assert profile_step.kind_of(kernel) == kind


def test_the_engine_by_itself(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "SECONDS", 0.05)
    monkeypatch.setattr(engine, "CONCURRENCY", (1,))
    engine.measure(["dit"])
    assert "| DiT, shipped | 1 |" in gpu_report.engine(read(out))


def test_the_images_of_the_engine_end_at_different_steps() -> None:
    model, config = device.model_of("dit")
    core = EngineCore({"dit": ModelRunner(model, config, device.DEVICE, torch.float32, 2)}, EngineConfig(2))
    steps = [engine.request(core, "dit", number).params.num_steps for number in range(70)]
    assert sorted(steps) == sorted([*range(7, 14)] * 10)


def test_graphs_are_compared(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ROWS": 2, "PLAIN_ROWS": 2, "MANY": 1, "FEW": 1, "STEPS": (1,)}.items():
        monkeypatch.setattr(graphs, name, value)
    graphs.compare("dit", torch.float32)
    found = read(out)[0]
    assert found["graph_twice_same_order"]["equal"] == found["graph_twice_same_order"]["images"]
    assert found["graph_against_plain"]["max"] <= 1


def test_requests_that_are_compared_take_every_way_through_a_step() -> None:
    model, config = device.model_of("dit")
    core = EngineCore({"model": ModelRunner(model, config, device.DEVICE, torch.float32, 2)}, EngineConfig(2))
    params = [request.params for request in graphs.requests(core, 60, 0)]
    tasks = [task for request in graphs.requests(core, 60, 0) for task in request.tasks]
    assert any(max(task.plan.rows) > task.plan.classes for task in tasks)  # two rows, on a network with guidance
    assert any(task.plan.classes > 1 for task in tasks)
    assert any(p.negative_label is not None for p in params)
    assert any(p.slerps for p in params)
    assert any(p.mask for p in params)
    assert any(p.image and not p.mask for p in params)
    assert any(p.trajectory for p in params)


def test_a_difference_is_seen() -> None:
    a = {("r", 0): np.zeros((2, 2), np.uint8), ("r", 1): np.zeros((2, 2), np.uint8)}
    b = a | {("r", 1): np.full((2, 2), 200, np.uint8)}
    assert graphs.difference(a, b) == {"images": 2, "equal": 1, "max": 200, "p95_of_max": 190.0, "mean": 100.0}
    assert served.difference(a["r", 0], b["r", 1]) == {"mean": 200.0, "p99": 200, "max": 200}


def test_what_is_allocated_holds_nan() -> None:
    assert poison.poisoned(torch.empty)(3).isnan().all()
    assert poison.poisoned(torch.empty_like)(torch.zeros(2, dtype=torch.int64)).dtype == torch.int64


def test_the_batcher_runs_real_networks() -> None:
    networks = pipelines.Pipelines(rows=2, graphs=True)
    pictures = networks.run(Settings("dit", 2, 4.0), 2)  # four rows, which no graph has
    pictures += networks.run(Settings("unet", 2, 1.0), 2)
    assert {Image.open(io.BytesIO(picture)).size for picture in pictures} == {(32, 32)}


@pytest.mark.parametrize("name", device.SHIPPED)
def test_the_batcher_runs_as_many_rows_as_the_service(name: str) -> None:
    """A guidance scale that the network takes as an input must not cost the other servers a second row."""
    pipeline = pipelines.Pipeline(name, 4, graphs=False)
    seen: list[int] = []
    pipeline.model.register_forward_pre_hook(lambda _, arguments: seen.append(len(arguments[0])))
    how = pipeline.config.default_sampling
    interval = tuple(how["guidance_interval"])
    for guidance in (1.0, 1.5, 3.0, 4.0):
        seen.clear()
        pipeline.images(2, 5, guidance)
        params = SamplingParams(name, 0, 5, "dpmpp_2m", guidance, interval, (1,), spacing=how["spacing"])
        plan = compile_plan(pipeline.config, params)
        assert seen == [2 * rows for rows in plan.rows]
    assert 4 in seen  # a scale beyond the trained range


def test_a_batcher_of_one_row_takes_one_request() -> None:
    taken = []

    class Pipeline:
        def rows(self, settings: Settings) -> int:
            return 2

        def run(self, settings: Settings, images: int) -> list[bytes]:
            taken.append(images)
            return [b""] * images

    async def run() -> None:
        batcher = Batcher(Pipeline(), 1)
        running = asyncio.create_task(batcher.run())
        await asyncio.gather(*(batcher.submit(Settings("dit", 2, 1.5)) for _ in range(3)))
        running.cancel()

    asyncio.run(run())
    assert taken == [1, 1, 1]


def test_loads_are_divided_among_processes() -> None:
    closed, rate = (
        load.LoadCase("ours", "npy16", 64).workload(4),
        load.LoadCase("ours", "mixed", rate=40.0).workload(4),
    )
    assert isinstance(closed, Closed)
    assert (closed.clients, closed.form, closed.kind.images) == (16, "npy", 16)
    assert isinstance(rate, Open)
    assert len(list(rate.arrivals())) == pytest.approx(10 * load.SECONDS, abs=4 * (10 * load.SECONDS) ** 0.5)


def test_all_clients_are_ready_before_the_first_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "PROCESSES", 2)
    with load.client_processes() as pool:
        assert len(pool._processes) == 2
        assert pool.submit(abs, -1).result() == 1


def test_every_load_has_a_place_in_the_table() -> None:
    servers = {*load.OURS, *load.OTHERS}
    assert {case.server for case in load.load_cases()} == servers <= set(gpu_report.SERVERS)
    assert {case.requests for case in load.load_cases()} <= set(gpu_report.LOADS)


def test_mixed_clients_ask_for_both_models(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    async def repeat(client: Any, workload: Closed, write: Any, kinds: Iterator[Kind] | None) -> list[Answer]:
        seen.append([write(kind) for kind in islice(kinds or [], 40)])
        return []

    monkeypatch.setattr(load, "repeat", repeat)
    for workload in ("mixed", "same"):
        load.run_clients("ours", 1, load.LoadCase("ours", workload, 2).workload(1), seed=0)
    mixed, same = (b"".join(requests) for requests in seen)
    assert mixed.count(b"model=dit") + mixed.count(b"model=unet") == 40
    assert 10 < mixed.count(b"model=dit") < 30
    assert same == b""  # always the workload's own


def test_a_failure_is_a_result(out: Path) -> None:
    with results.record_failures("steps", model="dit"):
        raise ValueError("too large")
    (failed,) = (json.loads(line) for line in out.read_text().splitlines())
    assert (failed["part"], failed["of"], failed["error"]) == ("failed", "steps", "ValueError: too large")
