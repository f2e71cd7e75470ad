"""Training and evaluation. `fit` does one optimiser step for each item taken from it; one may stop at any item.

Nothing here deals with files or terminals. Losses stay on the device until they are read. A `Training` holds all that
steps change, so one that was restored from a checkpoint continues as if it had never stopped.
"""

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpuconv.errors import UserError
from gpuconv.train import distributed
from gpuconv.train.config import Config
from gpuconv.train.data import Data, epoch_batches

_EVALUATION_BATCH = 1000
# What a network raises for images that it cannot take.
_MISFITS = (RuntimeError, ValueError, TypeError, AssertionError, AttributeError)


def loss_sum(outputs: Tensor, labels: Tensor, config: Config) -> Tensor:
    """The loss of outputs [N, classes] and labels [N], summed over the batch."""
    if config.loss == "cross-entropy":
        return F.cross_entropy(outputs, labels, reduction="sum", label_smoothing=config.label_smoothing)
    targets = F.one_hot(labels, outputs.shape[1]).to(outputs.dtype).lerp(
        torch.full_like(outputs, 1 / outputs.shape[1]), config.label_smoothing
    )  # fmt: skip
    return F.mse_loss(outputs, targets, reduction="sum") / outputs.shape[1]


def learning_rate(step: int, steps: int, config: Config) -> float:
    """The learning rate of a step, counted from 0: a quarter of the steps up, then down to 0; or half a cosine."""
    if config.schedule == "cosine":
        return config.lr * (1 + math.cos(math.pi * step / steps)) / 2
    rise = max(1, round(steps / 4))
    return config.lr * ((step + 1) / rise if step < rise else (steps - step) / (steps - rise))


@dataclasses.dataclass
class Position:
    """The position of training after a step. `loss()` and `running()` wait for the device; nothing else does."""

    steps: int  # in all
    epoch_steps: int
    step: int = 0
    lr: float = 0.0  # of this step
    images: int = 0  # of this epoch so far, in this process; so are `sums`
    sums: Tensor = dataclasses.field(default_factory=lambda: torch.zeros(2))  # loss, images classified correctly
    since: tuple[float, int] = (0.0, 0)  # time.perf_counter() when this epoch began or was resumed, `images` then
    last_loss: Tensor = dataclasses.field(default_factory=torch.Tensor)

    @property
    def epochs(self) -> int:
        """The number of epochs; the last may be incomplete."""
        return -(-self.steps // self.epoch_steps)

    @property
    def epoch(self) -> int:
        """The epoch of the last step, counted from 1."""
        return max(0, self.step - 1) // self.epoch_steps + 1

    @property
    def epoch_ended(self) -> bool:
        """Whether the last step was its epoch's last."""
        return self.ended or (self.step > 0 and self.step % self.epoch_steps == 0)

    @property
    def ended(self) -> bool:
        """Whether this was the last step of all."""
        return self.step == self.steps

    def loss(self) -> float:
        """Mean loss of this step's batch."""
        return float(distributed.sum_over_ranks(self.last_loss.clone()))

    def running(self) -> tuple[float, float, float]:
        """(mean loss, accuracy 0 … 1, images per second) of this epoch so far, in this process."""
        loss, right = self.sums.tolist()
        began, images = self.since
        return loss / self.images, right / self.images, (self.images - images) / (time.perf_counter() - began)


class Training:
    """All that training changes; a checkpoint holds it."""

    def __init__(self, network: nn.Module, config: Config, images: int, min_batch: int = 1) -> None:
        """Trains `network` in place on a training set of `images` images, in batches of at least `min_batch`."""
        self.network, self.min_batch = network, min_batch
        self.average = copy.deepcopy(network) if config.ema else None
        bias_lr = getattr(network, "bias_lr", 1)  # a factor on the learning rate of BatchNorm's biases
        shifts = (
            {id(norm.bias) for norm in network.modules() if isinstance(norm, nn.BatchNorm2d)} if bias_lr > 1 else {}
        )
        groups = []
        for is_shift, scale in ((False, 1), (True, bias_lr)):
            params = [p for p in network.parameters() if p.requires_grad and (id(p) in shifts) == is_shift]
            if params:
                groups.append({"params": params, "scale": scale, "weight_decay": config.weight_decay / scale})
        if config.optimizer == "adamw":
            self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups, lr=config.lr, fused=True)
        else:
            nesterov = config.momentum > 0
            self.optimizer = torch.optim.SGD(groups, config.lr, config.momentum, nesterov=nesterov, fused=True)
        device = next(network.parameters()).device
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.dtype == "float16")
        self.at = Position(*config.length(images, min_batch))
        self.at.sums = torch.zeros(2, dtype=torch.float64, device=device)

    @property
    def network_to_save(self) -> nn.Module:
        """The network that is evaluated and saved: the average where there is one."""
        return self.network if self.average is None else self.average


def dry_run(network: nn.Module, data: Data, config: Config) -> int:
    """Forward and backward of a copy of the network on two images, so that what cannot be computed here raises now.

    Returns the least number of images that a batch must have in each process: 1, or 2 where the network cannot be
    trained on a single image (BatchNorm on maps of one pixel would have no variance).
    """

    def step(count: int) -> None:
        images = data.pixels(data.images[:count], config.weight_dtype)
        outputs = _outputs(copy.deepcopy(network), images, config)
        loss_sum(outputs, data.labels[:count], config).backward()

    try:
        step(2)
    except _MISFITS as error:
        if type(error).__module__.startswith(("gpuconv", "torch")):  # a backend's refusal, or out of memory
            raise
        shape, what = "×".join(map(str, data.image_shape)), str(error).splitlines()[0]
        raise UserError(f"model {config.model} cannot be trained on images of {shape}: {what}") from None
    try:
        step(1)
    except _MISFITS:
        return 2
    return 1


def fit(
    training: Training, data: Data, config: Config, mark: Callable[[str], None] = lambda stage: None
) -> Iterator[Position]:
    """Train, one optimiser step for each item; the items are `training.at`. `mark` gets the name of each stage done."""
    at, optimizer, scaler = training.at, training.optimizer, training.scaler
    network, world = training.network, distributed.world_size()
    if world > 1:
        network = nn.parallel.DistributedDataParallel(network)
    if config.compile:
        network = torch.compile(network)  # type: ignore[assignment]
    params = [p for p in training.network.parameters() if p.requires_grad]
    averaging = _averaging(training, config)
    while not at.ended:
        training.network.train()
        epoch, first = at.step // at.epoch_steps + 1, at.step % at.epoch_steps
        if first == 0:
            at.images = 0
            at.sums.zero_()
        at.since = time.perf_counter(), at.images
        for images, labels, size in epoch_batches(
            data, config, epoch, first, (distributed.rank(), world), training.min_batch
        ):
            mark("data")
            at.lr = learning_rate(at.step, at.steps, config)
            for group in optimizer.param_groups:
                group["lr"] = at.lr * group["scale"]
            outputs = _outputs(network, images, config)
            loss = loss_sum(outputs, labels, config) / size
            mark("forward")
            optimizer.zero_grad()
            scaler.scale(loss * world).backward()  # DDP takes the mean over processes
            mark("backward")
            if config.clip:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(params, config.clip)
            scaler.step(optimizer)
            scaler.update()
            averaging(at.step)
            mark("optimizer")
            at.step += 1
            at.images += len(labels)
            at.last_loss = loss.detach()
            at.sums += torch.stack([at.last_loss.double() * size, (outputs.argmax(1) == labels).sum()])
            yield at
            if at.ended:
                break


def _averaging(training: Training, config: Config) -> Callable[[int], None]:
    """A function that updates `training.average`, buffers included, after a step; its decay begins small."""
    if training.average is None:
        return lambda step: None
    pairs = list(zip(training.average.state_dict().values(), training.network.state_dict().values(), strict=True))
    floats = [pair for pair in pairs if pair[0].is_floating_point()]
    counts = [pair for pair in pairs if not pair[0].is_floating_point()]
    means, values = [pair[0] for pair in floats], [pair[1] for pair in floats]

    @torch.no_grad()
    def average(step: int) -> None:
        torch._foreach_lerp_(means, values, 1 - min(config.ema, (1 + step) / (10 + step)))
        for mean, value in counts:
            mean.copy_(value)

    return average


@dataclasses.dataclass(frozen=True)
class Score:
    """The accuracy and the mean loss of a network on n images that it was not trained on."""

    accuracy: float
    loss: float
    n: int


@torch.no_grad()
def evaluate(network: nn.Module, data: Data, config: Config, part: str = "test") -> Score:
    """The score of the network, in evaluation mode, on the images of a part, 'val' or 'test'."""
    network.eval()
    all_images, all_labels = data.part(part)
    n = len(all_labels)
    sums = torch.zeros(2, dtype=torch.float64, device=data.labels.device)
    for images, labels in zip(all_images.split(_EVALUATION_BATCH), all_labels.split(_EVALUATION_BATCH), strict=True):
        outputs = evaluation_outputs(network, data.pixels(images, config.weight_dtype), config)
        sums += torch.stack([loss_sum(outputs, labels, config).double(), (outputs.argmax(1) == labels).sum()])
    loss, right = sums.tolist()
    return Score(right / n, loss / n, n)


def evaluation_outputs(network: nn.Module, images: Tensor, config: Config) -> Tensor:
    """The outputs [N, classes] for images [N, C, H, W] in evaluation, the mean over mirror images where `flip_test`."""
    outputs = _outputs(network, images, config)
    return (outputs + _outputs(network, images.flip(3), config)) / 2 if config.flip_test else outputs


def probabilities(outputs: Tensor, config: Config) -> Tensor:
    """The probabilities of the classes from outputs [N, classes]; those trained by mse are estimates of them."""
    if config.loss == "cross-entropy":
        return outputs.softmax(1)
    return F.normalize(outputs.clamp(min=1e-6), p=1.0)


def _outputs(network: nn.Module, images: Tensor, config: Config) -> Tensor:
    """The network's outputs [N, classes], never in 16 bits, since losses are computed from them."""
    if config.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    low = getattr(torch, config.dtype) if config.dtype in ("bfloat16", "float16") else None
    with torch.autocast(images.device.type, low, enabled=low is not None):
        outputs = network(images)
    return outputs if low is None else outputs.float()
