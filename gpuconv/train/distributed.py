"""Several processes that torchrun started to train together. In a process of its own, nothing here does anything."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """The number of this process; number 0 writes."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """The number of processes, on all machines."""
    return int(os.environ.get("WORLD_SIZE", 1))


@contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """A process group (NCCL on GPUs, gloo on CPUs) while the block runs; gives the device of this process."""
    if device.type == "cuda" and world_size() > 1:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    if world_size() == 1:
        yield device
        return
    # DistributedDataParallel imports this module, whose functions have the process group of that moment as a default:
    # its threads would then outlive the group, and at the interpreter's exit one of them may abort the process.
    from torch.distributed import nn  # noqa: F401

    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
        dist.barrier()  # a process that fails as it ends makes torchrun end the others: they have written by then
    finally:
        dist.destroy_process_group()


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of `values` over all processes, in place."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def true_on_any_rank(flag: bool) -> bool:
    """Whether `flag` is set in at least one process."""
    return bool(sum_over_ranks(torch.tensor(int(flag)))) if world_size() > 1 else flag


def gather(values: Tensor) -> Tensor:
    """The CPU tensors of all processes, [world size, …]."""
    found = [values] if world_size() == 1 else [torch.empty_like(values) for _ in range(world_size())]
    if world_size() > 1:
        dist.all_gather(found, values)
    return torch.stack(found)
