"""Random search against gradient descent: both look for a 5×5 edge detector, with equally many evaluations.

An evaluation convolves a picture of noise with one filter w and compares with what the edge detector t gives:

    loss(w) = mean (noise ∗ w − noise ∗ t)² / mean (noise ∗ t)²  ≈  |w − t|² / |t|²    (noise has no favourite pattern)

Random search, the monkey at the keyboard of the tour, draws one of the 25 weights anew, from a normal distribution, at
each evaluation, and makes no use of the loss. Its filters are therefore always 25 independent normal numbers, and as
|t|² = 25, 25·loss follows the noncentral χ² distribution with 25 degrees of freedom and noncentrality 25. That
distribution, checked against what was measured, says how often a loss is reached: in n draws n·P(loss ≤ ℓ) times on
average, so the probability of reaching it is at most that.
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
    """The derivative of a Gaussian, [5, 5], of norm 5: it responds where the left is dark and the right is light."""
    x = torch.arange(SIZE) - SIZE // 2
    gauss = torch.exp(-x.double().square() / 2)
    filter = gauss[:, None] * (x * gauss)[None, :]
    return (filter * (SIZE / filter.norm())).float()


class Evaluator:
    """Computes the loss of filters on a picture of noise, and counts the filters."""

    def __init__(self, target: Tensor) -> None:
        generator = torch.Generator().manual_seed(0)
        self._noise = torch.randn(1, 1, _NOISE, _NOISE, generator=generator)
        self._target_maps = gpuconv.conv2d(self._noise, target[None, None])
        self.evaluations = 0

    def losses(self, filters: Tensor) -> Tensor:
        """The losses [F] of filters [F, 5, 5]; differentiable."""
        self.evaluations += len(filters)
        given = gpuconv.conv2d(self._noise, filters[:, None])
        return (given - self._target_maps).square().mean((0, 2, 3)) / self._target_maps.square().mean()


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The losses and filters of both searches, for each seed."""

    target: Tensor  # [5, 5]
    random: Tensor  # [seeds, evaluations]: the loss at each evaluation
    gradient: Tensor  # [seeds, evaluations]
    random_best: Tensor  # [seeds, 5, 5]: the best filter drawn
    gradient_last: Tensor  # [seeds, 5, 5]
    evaluations: tuple[int, int]  # in all, of random search and of gradient descent, as counted

    @property
    def best_so_far(self) -> Tensor:
        """The least loss of random search up to each evaluation, [seeds, evaluations]."""
        return self.random.cummin(1).values


def compare(evaluations: int, seeds: int) -> Comparison:
    """Run both searches for `evaluations` evaluations from each of `seeds` random filters."""
    target = edge_detector()
    evaluators = Evaluator(target), Evaluator(target)
    random, gradient, best, last = [], [], [], []
    for seed in range(seeds):
        drawn = _random_filters(evaluations, torch.Generator().manual_seed(seed))
        losses = torch.cat([evaluators[0].losses(chunk) for chunk in drawn.split(_CHUNK)])
        random.append(losses)
        best.append(drawn[losses.argmin()])
        filter, steps = drawn[0].clone().requires_grad_(), []
        for _ in range(evaluations):
            evaluated = filter
            loss = evaluators[1].losses(evaluated[None])[0]
            (slope,) = torch.autograd.grad(loss, evaluated)
            filter = (evaluated - _RATE * _WEIGHTS / 2 * slope).detach().requires_grad_()
            steps.append(loss.detach())
        gradient.append(torch.stack(steps))
        last.append(evaluated.detach())
    counts = evaluators[0].evaluations, evaluators[1].evaluations
    return Comparison(
        target, torch.stack(random), torch.stack(gradient), torch.stack(best), torch.stack(last), counts
    )  # fmt: skip


def _random_filters(count: int, generator: torch.Generator) -> Tensor:
    """The filters of random search, [count, 5, 5]: each is the one before with one weight drawn anew."""
    first = torch.randn(_WEIGHTS, generator=generator)
    places = torch.randint(_WEIGHTS, (count,), generator=generator).tolist()
    values = torch.randn(count, generator=generator).tolist()
    filters = torch.empty(count, _WEIGHTS)
    for i, (place, value) in enumerate(zip(places, values, strict=True)):
        filters[i] = filters[i - 1] if i else first
        if i:
            filters[i, place] = value
    return filters.view(count, SIZE, SIZE)


def share_below(loss: float) -> float:
    """The share of random filters whose loss is at most `loss`, by the noncentral χ² distribution."""
    from scipy.special import chndtr  # comes with scikit-learn

    return float(chndtr(_WEIGHTS * loss, _WEIGHTS, _WEIGHTS))
