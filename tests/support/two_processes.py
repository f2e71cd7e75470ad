"""One of two processes that train a converted network together on halves of each batch; run by test_distributed.py.

python two_processes.py ddp|fsdp RANK FOLDER
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

import gpuconv

STEPS = 20


def network() -> torch.nn.Module:
    """Convolutions of many kinds and no BatchNorm, whose statistics of half a batch would differ from those of all."""
    torch.manual_seed(5)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
        torch.nn.Conv2d(8, 12, 3, stride=2, padding=1, padding_mode="circular"),
        torch.nn.ReLU(),
        torch.nn.ConvTranspose2d(12, 6, 3, stride=2, output_padding=1),
        torch.nn.Conv2d(6, 4, 1),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
    ).double()


def train(model: torch.nn.Module, part: slice) -> None:
    """STEPS steps on `part` of each batch of 8 images."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    data = torch.Generator().manual_seed(6)
    for _ in range(STEPS):
        images = torch.randn(8, 3, 9, 8, generator=data, dtype=torch.float64)
        labels = torch.randint(4, (8,), generator=data)
        loss = torch.nn.functional.cross_entropy(model(images[part]), labels[part])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def main() -> None:
    way, rank, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/{way}", rank=rank, world_size=2)
    model = network()
    assert not gpuconv.convert(model).kept
    parallel = model
    if way == "ddp":
        parallel = torch.nn.parallel.DistributedDataParallel(model)
    else:
        from torch.distributed.fsdp import fully_shard

        mesh = torch.distributed.init_device_mesh("cpu", (2,))
        for layer in model:
            if isinstance(layer, gpuconv.nn.Conv2d):
                fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    with gpuconv.use_backend("numpy"):
        train(parallel, slice(4 * rank, 4 * rank + 4))
    state = model.state_dict()
    if way == "fsdp":
        state = {name: value.full_tensor() for name, value in state.items()}
    if rank == 0:
        torch.save(state, folder / f"{way}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # PyTorch's caches keep a mesh, and with it threads, one of which may abort the interpreter's exit
