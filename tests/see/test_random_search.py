"""The monkey and gradient descent: equal terms, and a law that fits what was measured."""

import pytest
import torch

from gpuconv.see import random_search


@pytest.fixture(scope="module")
def race() -> random_search.Race:
    return random_search.race(evaluations=400, seeds=3)


def test_both_get_the_same_number_of_filter_evaluations(race: random_search.Race) -> None:
    assert race.evaluations == (1200, 1200)
    assert race.monkey.shape == race.gradient.shape == (3, 400)
    torch.testing.assert_close(race.monkey[:, 0], race.gradient[:, 0])  # from the same filters


def test_gradient_descent_arrives_and_the_monkey_does_not(race: random_search.Race) -> None:
    torch.testing.assert_close(race.gradient_last, race.target.expand(3, 5, 5), rtol=0, atol=1e-4)
    assert race.gradient[:, 50].max() < 0.01 < 0.5 < race.monkey.min()
    assert race.best_so_far[:, -1].equal(race.monkey.amin(1))


def test_the_monkey_types_one_weight_at_a_time_and_is_not_told() -> None:
    typed = random_search._typed(200, torch.Generator().manual_seed(3))
    changed = (typed[1:] != typed[:-1]).flatten(1).sum(1)
    assert changed.eq(1).all()
    assert typed.mean().abs() < 0.3 and 0.7 < typed.std() < 1.3


def test_the_loss_is_zero_for_the_edge_detector_and_one_for_nothing() -> None:
    target = random_search.edge_detector()
    assert target.norm() == pytest.approx(5) and target.sum().abs() < 1e-6
    losses = random_search.Judge(target).losses(torch.stack([target, torch.zeros(5, 5)]))
    assert losses.tolist() == pytest.approx([0, 1])


def test_the_law_is_what_independent_filters_measure() -> None:
    filters = torch.randn(20_000, 5, 5, generator=torch.Generator().manual_seed(0))
    losses = (filters - random_search.edge_detector()).square().sum((1, 2)) / 25
    for level in (0.9, 1.2, 1.6, 2.0, 2.6):
        share = random_search.chance(level)
        assert (losses <= level).double().mean().item() == pytest.approx(share, abs=4 * (share / 20_000) ** 0.5)
    shares = [random_search.chance(level) for level in (1e-3, 0.01, 0.1, 1, 2)]
    assert shares == sorted(shares) and 1e-27 < shares[1] < 1e-25


def test_the_judge_agrees_with_the_law_on_noise() -> None:
    filters = torch.randn(500, 5, 5, generator=torch.Generator().manual_seed(1))
    exact = (filters - random_search.edge_detector()).square().sum((1, 2)) / 25
    ratio = random_search.Judge(random_search.edge_detector()).losses(filters) / exact
    assert ratio.mean().item() == pytest.approx(1, abs=0.1) and 0.6 < ratio.min() < ratio.max() < 1.5
