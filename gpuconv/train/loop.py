"""Training and evaluation: SGD with Nesterov momentum, its rate rising for a quarter of the steps, then falling to 0.

`fit` is a generator that does one optimiser step for each item taken from it. It knows nothing of files or terminals,
and whoever takes the items may stop at any step. Losses stay on the device until somebody asks.
"""

import copy
import dataclasses
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpuconv.train.config import Config
from gpuconv.train.data import Data, epoch_batches

_EVALUATION_BATCH = 1000

_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # of outputs [N, classes] and labels [N]: a mean
    "cross-entropy": F.cross_entropy,
    "mse": lambda outputs, labels: F.mse_loss(outputs, F.one_hot(labels, outputs.shape[1]).to(outputs.dtype)),
}


@dataclasses.dataclass
class Progress:
    """Where training is after a step. `loss()` and `running()` wait for the device; the rest is at hand."""

    steps: int  # in all
    epochs: int  # in all; the last may be cut short
    step: int = 0
    epoch: int = 0  # counted from 1
    epoch_ended: bool = False
    lr: float = 0.0  # of this step
    images: int = 0  # this epoch, so far; the next three too
    started: float = 0.0  # time.perf_counter()
    loss_sum: Tensor = dataclasses.field(default_factory=torch.Tensor)
    right: Tensor = dataclasses.field(default_factory=torch.Tensor)
    last_loss: Tensor = dataclasses.field(default_factory=torch.Tensor)

    @property
    def ended(self) -> bool:
        """Whether this was the last step."""
        return self.step == self.steps

    def loss(self) -> float:
        """Mean loss of this step's batch."""
        return float(self.last_loss)

    def running(self) -> tuple[float, float, float]:
        """(mean loss, accuracy 0 … 1, images a second) of this epoch so far, as seen in training."""
        loss, right = torch.stack([self.loss_sum, self.right]).tolist()
        return loss / self.images, right / self.images, self.images / (time.perf_counter() - self.started)


@dataclasses.dataclass(frozen=True)
class Score:
    """The share of n held-out images that a network names rightly, and its mean loss on them."""

    accuracy: float
    loss: float
    n: int


def one_cycle(step: int, steps: int, peak: float) -> float:
    """The learning rate of a step, counted from 0."""
    rise = max(1, round(steps / 4))
    return peak * ((step + 1) / rise if step < rise else (steps - step) / (steps - rise))


def rehearse(network: nn.Module, data: Data, config: Config) -> None:
    """Forward and backward of a copy of the network on two images: what cannot be done here raises now."""
    _LOSSES[config.loss](_outputs(copy.deepcopy(network), data.images[:2], config), data.labels[:2]).backward()


def fit(network: nn.Module, data: Data, config: Config) -> Iterator[Progress]:
    """Train `network` in place, one optimiser step for each item; the items are one and the same object."""
    device = data.labels.device
    optimizer = torch.optim.SGD(
        network.parameters(), lr=config.lr, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True
    )
    scaler = torch.amp.GradScaler(device.type, enabled=config.dtype == "float16")
    steps, steps_an_epoch = config.length(len(data.labels))
    at = Progress(steps, epochs=-(-steps // steps_an_epoch))
    while not at.ended:
        network.train()
        at.epoch, at.epoch_ended, at.images, at.started = at.epoch + 1, False, 0, time.perf_counter()
        at.loss_sum, at.right = torch.zeros(2, dtype=torch.float64, device=device).unbind()
        for images, labels in epoch_batches(data, config.batch_size, config.seed, at.epoch):
            at.lr = one_cycle(at.step, steps, config.lr)
            for group in optimizer.param_groups:
                group["lr"] = at.lr
            outputs = _outputs(network, images, config)
            loss = _LOSSES[config.loss](outputs, labels)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            at.step += 1
            at.images += len(labels)
            at.last_loss = loss.detach()
            at.loss_sum += at.last_loss * len(labels)
            at.right += (outputs.argmax(1) == labels).sum()
            at.epoch_ended = at.ended or at.images == len(data.labels)
            yield at
            if at.ended:
                break


@torch.no_grad()
def evaluate(network: nn.Module, data: Data, config: Config) -> Score:
    """The network, in evaluation mode, on the held-out images."""
    network.eval()
    n = len(data.test_labels)
    loss_sum, right = torch.zeros(2, dtype=torch.float64, device=data.labels.device).unbind()
    for batch in range(0, n, _EVALUATION_BATCH):
        labels = data.test_labels[batch : batch + _EVALUATION_BATCH]
        outputs = _outputs(network, data.test_images[batch : batch + _EVALUATION_BATCH], config)
        loss_sum += _LOSSES[config.loss](outputs, labels) * len(labels)
        right += (outputs.argmax(1) == labels).sum()
    return Score(float(right) / n, float(loss_sum) / n, n)


def _outputs(network: nn.Module, images: Tensor, config: Config) -> Tensor:
    """The network's outputs [N, classes], never in 16 bits: losses are computed from them."""
    low = getattr(torch, config.dtype) if config.dtype in ("bfloat16", "float16") else None
    with torch.autocast(images.device.type, low, enabled=low is not None):
        outputs = network(images)
    return outputs if low is None else outputs.float()
