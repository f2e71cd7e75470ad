"""One process of several that torchrun started to train together, or the only one: then this file does nothing."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """Which process this is; number 0 writes."""
    return int(os.environ.get("RANK", 0))


def world() -> int:
    """How many there are, on all machines."""
    return int(os.environ.get("WORLD_SIZE", 1))


@contextmanager
def together(device: torch.device) -> Iterator[torch.device]:
    """While the processes know each other (NCCL on GPUs, gloo on CPUs); gives this one's device."""
    if device.type == "cuda" and world() > 1:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    if world() == 1:
        yield device
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
        dist.barrier()  # a process that fails when it ends has torchrun end the others: they shall have written by then
    finally:
        dist.destroy_process_group()


def total(values: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if world() > 1:
        dist.all_reduce(values)
    return values


def any_of(flag: bool) -> bool:
    """Whether it is so in some process."""
    return bool(total(torch.tensor(int(flag)))) if world() > 1 else flag


def each(values: Tensor) -> Tensor:
    """Everybody's CPU tensor, [world, …]."""
    found = [values] if world() == 1 else [torch.empty_like(values) for _ in range(world())]
    if world() > 1:
        dist.all_gather(found, values)
    return torch.stack(found)
