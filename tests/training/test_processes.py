"""How the processes of torchrun find their devices and agree on where they are."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from training.processes import Processes
from training.state import StateError

CPU = torch.device("cpu")


@pytest.fixture
def torchrun(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Process 5 of 8, the second of its node with two GPUs; the dictionary tells what was asked for."""
    asked: dict[str, Any] = {}
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(dist, "is_torchelastic_launched", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: 5)
    monkeypatch.setattr(dist, "get_world_size", lambda: 8)
    monkeypatch.setattr(dist, "init_process_group", lambda *args, **kwargs: asked.update(group=(args, kwargs)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: asked.update(device=device))
    return asked


def test_a_process_takes_the_gpu_of_its_local_rank(torchrun: dict[str, Any]) -> None:
    world = Processes.join()
    assert (world.rank, world.size, world.device) == (5, 8, torch.device("cuda", 1))
    assert torchrun["device"] == world.device
    assert torchrun["group"] == (("nccl",), {"device_id": world.device})


def test_more_processes_than_gpus_are_refused(torchrun: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match=r"2 GPUs.*--nproc-per-node"):
        Processes.join()
    assert torchrun == {}


def test_without_cuda_the_processes_meet_over_gloo(
    torchrun: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Processes.join().device == CPU
    assert torchrun["group"] == (("gloo",), {})


def test_a_single_process_of_torchrun_leaves_too(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    Processes(0, 1, CPU).leave()
    assert not dist.is_initialized()
    Processes(0, 1, CPU).leave()  # one that never joined


def agree(rank: int, meet: str, steps: list[int]) -> None:
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=len(steps))
    world = Processes(rank, len(steps), CPU)
    try:
        world.agree(steps[rank])
    finally:
        world.leave()


def test_processes_that_resumed_at_different_steps_stop(tmp_path: Path) -> None:
    def start(name: str, steps: list[int]) -> None:
        spawn(agree, (f"file://{tmp_path / name}", steps), nprocs=2)

    start("same", [250, 250])
    with pytest.raises(Exception, match="processes resumed at steps 0, 250: .*--out") as error:
        start("apart", [0, 250])
    assert StateError.__name__ in str(error.value)


def test_a_process_alone_agrees_with_itself() -> None:
    Processes(0, 1, CPU).agree(3)
