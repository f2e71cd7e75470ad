"""Measures the trainer beside a plain hand-written PyTorch loop with the same network, data, batches and arithmetic.

    python -m gpuconv.bench.plain_loop [--data cifar10:DIR] [--model tutorial] [--device cuda] [--rounds 8] [--json]

The plain loop holds normalised float images in memory and does nothing but train: no augmentation, no bookkeeping, a
stock network. The trainer runs with backend `auto`, without augmentation either, and keeps its losses and accuracy. The
two take turns, `--steps` steps at a time. Each round gives a ratio of its two times; their median is printed.
"""

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F

import gpuconv
from gpuconv import text
from gpuconv.bench.environment import environment

_WARM_UP = 10  # steps


def plain(
    network: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, batch_size: int, steps: int
) -> Iterator[None]:
    """An ordinary training loop on normalised images; a step for each item."""
    optimizer = torch.optim.SGD(
        network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True, fused=True
    )
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
    network.train()
    while True:
        for batch in torch.randperm(len(labels)).to(labels.device).split(batch_size):
            loss = F.cross_entropy(network(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            yield


def measure(data: str, model: str, device: str, batch_size: int, steps: int, rounds: int) -> dict[str, Any]:
    """Images a second of both, and the median ratio of the rounds (trainer over plain)."""
    from gpuconv.train import data as datasets, loop, networks
    from gpuconv.train.config import Config

    total = _WARM_UP + steps * rounds + 1
    config = Config(data=data, model=model, device=device, batch_size=batch_size, steps=total)
    config.check()
    where = torch.device(device)
    loaded = datasets.load(config).to(where)

    def network() -> torch.nn.Module:
        torch.manual_seed(0)
        made = networks.build(model, loaded.image_shape, len(loaded.classes)).to(where)
        networks.measure(made, loaded.images, loaded.top)
        return made

    stock: Any = gpuconv.revert(network())
    normalised = torch.cat([stock.normalize(loaded.pixels(part, torch.float32)) for part in loaded.images.split(1000)])
    stock.normalize = torch.nn.Identity()
    loops: dict[str, Iterator[Any]] = {
        "plain": plain(stock, normalised, loaded.labels, batch_size, total),
        "trainer": loop.fit(loop.Training(network(), config, len(loaded.labels)), loaded, config),
    }
    wait: Callable[[], Any] = torch.cuda.synchronize if where.type == "cuda" else lambda: None
    times: dict[str, list[float]] = {name: [] for name in loops}
    with gpuconv.use_backend("auto"):
        for steps_now in (_WARM_UP, *[steps] * rounds):
            for name in loops if len(times["plain"]) % 2 else reversed(loops):  # neither always goes first
                wait()
                start = time.perf_counter()
                for _ in itertools.islice(loops[name], steps_now):
                    pass
                wait()
                times[name].append(time.perf_counter() - start)
    rates = {name: [steps * batch_size / seconds for seconds in found[1:]] for name, found in times.items()}
    ratios = [a / b for a, b in zip(rates["trainer"], rates["plain"], strict=True)]
    return {
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        **{f"{name}_images_per_second": statistics.median(found) for name, found in rates.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits", help="as `gpuconv train` takes it")
    parser.add_argument("--model", default="tutorial")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=30, help="in one turn")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    options = vars(parser.parse_args())
    as_json = options.pop("json")
    found = measure(**options)
    if as_json:
        print(json.dumps(options | found | environment(torch.device(options["device"]))))
        return
    print(f"plain    {found['plain_images_per_second']:,.0f} images/s")
    print(f"trainer  {found['trainer_images_per_second']:,.0f} images/s")
    print(f"ratio    {found['ratio']:.3f} (rounds: {found['ratio_low']:.3f} … {found['ratio_high']:.3f})")


if __name__ == "__main__":
    text.print_anything()
    main()
