"""A monkey at the keyboard against gradient descent: both look for a 5×5 edge detector, with equally many evaluations.

An evaluation convolves a picture of noise with one filter w and compares with what the edge detector t gives:

    loss(w) = mean (noise ∗ w − noise ∗ t)² / mean (noise ∗ t)²  ≈  |w − t|² / |t|²    (noise has no favourite pattern)

The monkey types one of the 25 weights anew, from a normal distribution, at each evaluation, and nobody tells it the
loss. Its filters are therefore always 25 independent normal numbers, and as |t|² = 25, 25·loss follows the noncentral
χ² distribution with 25 degrees of freedom and noncentrality 25. That law, checked against what was measured, says how
often a loss is met with: in n mutations n·P(loss ≤ ℓ) times on average, so the chance of meeting it is at most that.
"""

import dataclasses

import torch
from torch import Tensor

import gpuconv

SIZE = 5
_WEIGHTS = SIZE * SIZE
_NOISE = 48
_RATE = 0.2  # of gradient descent; the loss's second derivative is about 2/25, and that is divided out
_CHUNK = 512


def edge_detector() -> Tensor:
    """Light on the right, dark on the left: the derivative of a Gaussian, [5, 5], of norm 5."""
    x = torch.arange(SIZE) - SIZE // 2
    gauss = torch.exp(-x.double().square() / 2)
    filter = gauss[:, None] * (x * gauss)[None, :]
    return (filter * (SIZE / filter.norm())).float()


class Judge:
    """Measures filters on a picture of noise, and counts how many it has measured."""

    def __init__(self, target: Tensor) -> None:
        generator = torch.Generator().manual_seed(0)
        self._noise = torch.randn(1, 1, _NOISE, _NOISE, generator=generator)
        self._wanted = gpuconv.conv2d(self._noise, target[None, None])
        self.evaluations = 0

    def losses(self, filters: Tensor) -> Tensor:
        """[F] of filters [F, 5, 5]; differentiable."""
        self.evaluations += len(filters)
        given = gpuconv.conv2d(self._noise, filters[:, None])
        return (given - self._wanted).square().mean((0, 2, 3)) / self._wanted.square().mean()


@dataclasses.dataclass(frozen=True)
class Race:
    """What came of it, for each seed."""

    target: Tensor  # [5, 5]
    monkey: Tensor  # [seeds, evaluations]: the loss of each
    gradient: Tensor  # the same
    monkey_best: Tensor  # [seeds, 5, 5]: the best filter it ever typed
    gradient_last: Tensor  # [seeds, 5, 5]
    evaluations: tuple[int, int]  # in all, monkey and gradient, as counted

    @property
    def best_so_far(self) -> Tensor:
        """[seeds, evaluations]: the monkey's, if somebody had kept a record."""
        return self.monkey.cummin(1).values


def race(evaluations: int, seeds: int) -> Race:
    """Let both look for `evaluations` evaluations from each of `seeds` random filters."""
    target = edge_detector()
    judges = Judge(target), Judge(target)
    monkey, gradient, best, last = [], [], [], []
    for seed in range(seeds):
        typed = _typed(evaluations, torch.Generator().manual_seed(seed))
        losses = torch.cat([judges[0].losses(some) for some in typed.split(_CHUNK)])
        monkey.append(losses)
        best.append(typed[losses.argmin()])
        filter, steps = typed[0].clone().requires_grad_(), []
        for _ in range(evaluations):
            judged = filter
            loss = judges[1].losses(judged[None])[0]
            (slope,) = torch.autograd.grad(loss, judged)
            filter = (judged - _RATE * _WEIGHTS / 2 * slope).detach().requires_grad_()
            steps.append(loss.detach())
        gradient.append(torch.stack(steps))
        last.append(judged.detach())
    counts = judges[0].evaluations, judges[1].evaluations
    return Race(
        target, torch.stack(monkey), torch.stack(gradient), torch.stack(best), torch.stack(last), counts
    )  # fmt: skip


def _typed(count: int, generator: torch.Generator) -> Tensor:
    """The monkey's filters, [count, 5, 5]: each is the one before with one weight typed anew."""
    first = torch.randn(_WEIGHTS, generator=generator)
    keys = torch.randint(_WEIGHTS, (count,), generator=generator).tolist()
    values = torch.randn(count, generator=generator).tolist()
    filters = torch.empty(count, _WEIGHTS)
    for i, (key, value) in enumerate(zip(keys, values, strict=True)):
        filters[i] = filters[i - 1] if i else first
        if i:
            filters[i, key] = value
    return filters.view(count, SIZE, SIZE)


def chance(loss: float) -> float:
    """The law: the share of the monkey's filters whose loss is at most `loss`."""
    from scipy.special import chndtr  # comes with scikit-learn

    return float(chndtr(_WEIGHTS * loss, _WEIGHTS, _WEIGHTS))
