"""Distributed training: rank, device and collectives of this process under torchrun."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import get_node_local_rank

from training.state import StateError


class Processes:
    """Uses nccl with CUDA, gloo without, and no process group outside torchrun."""

    def __init__(self, rank: int, size: int, device: torch.device):
        self.rank, self.size, self.device = rank, size, device

    @classmethod
    def join(cls) -> "Processes":
        """Raises ValueError: more processes on this node than GPUs."""
        cuda = torch.cuda.is_available()
        if not dist.is_torchelastic_launched():
            return cls(0, 1, torch.device("cuda" if cuda else "cpu"))
        if cuda:
            device = local_gpu()
            torch.cuda.set_device(device)  # else every process opens a context on GPU 0
            dist.init_process_group("nccl", device_id=device)
        else:
            device = torch.device("cpu")
            dist.init_process_group("gloo")
        return cls(dist.get_rank(), dist.get_world_size(), device)

    def wait(self) -> None:
        """Return when all processes are here.

        Call it before the last one leaves. A thread of gloo may still hold the tensor of the last collective. If
        the interpreter ends meanwhile, torch aborts this process (github.com/pytorch/pytorch/pull/179291).
        """
        if self.size > 1:
            dist.barrier()

    def leave(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()

    def share(self, batch_size: int) -> slice:
        """This process's part of the global batch. Raises ValueError: processes do not divide batch_size."""
        if batch_size % self.size:
            raise ValueError(f"batch_size {batch_size} is no multiple of the {self.size} processes")
        part = batch_size // self.size
        return slice(self.rank * part, (self.rank + 1) * part)

    def largest(self, number: int) -> int:
        """The maximum of the processes' numbers; all processes must call this at the same step."""
        if self.size == 1:
            return number
        everyone = torch.tensor(number, device=self.device)
        dist.all_reduce(everyone, dist.ReduceOp.MAX)
        return int(everyone)

    def agree(self, step: int) -> None:
        """Raises StateError in every process unless all are at the same step; otherwise training would hang."""
        if self.size == 1:
            return
        mine = torch.tensor(step, device=self.device)
        everyone: list[Tensor] = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(everyone, mine)
        steps = sorted({int(other) for other in everyone})
        if len(steps) > 1:
            found = ", ".join(map(str, steps))
            raise StateError(
                f"the processes resumed at steps {found}: --out must be one folder that all of them see"
            )


def local_gpu() -> torch.device:
    rank, count = get_node_local_rank(), torch.cuda.device_count()
    if rank >= count:
        raise ValueError(f"more processes than the {count} GPUs of this node: lower --nproc-per-node")
    return torch.device("cuda", rank)
