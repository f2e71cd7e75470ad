"""Random search and gradient descent: equal terms, and a distribution that fits what was measured."""

import pytest
import torch

from gpuconv.see import random_search


@pytest.fixture(scope="module")
def found() -> random_search.Comparison:
    return random_search.compare(evaluations=400, seeds=3)


def test_both_get_the_same_number_of_filter_evaluations(found: random_search.Comparison) -> None:
    assert found.evaluations == (1200, 1200)
    assert found.random.shape == found.gradient.shape == (3, 400)
    torch.testing.assert_close(found.random[:, 0], found.gradient[:, 0])  # from the same filters


def test_gradient_descent_arrives_and_random_search_does_not(found: random_search.Comparison) -> None:
    torch.testing.assert_close(found.gradient_last, found.target.expand(3, 5, 5), rtol=0, atol=1e-4)
    assert found.gradient[:, 50].max() < 0.01 < 0.5 < found.random.min()
    assert found.best_so_far[:, -1].equal(found.random.amin(1))


def test_random_search_draws_one_weight_at_a_time_and_ignores_the_loss() -> None:
    drawn = random_search._random_filters(200, torch.Generator().manual_seed(3))
    changed = (drawn[1:] != drawn[:-1]).flatten(1).sum(1)
    assert changed.eq(1).all()
    assert drawn.mean().abs() < 0.3 and 0.7 < drawn.std() < 1.3


def test_the_loss_is_zero_for_the_edge_detector_and_one_for_nothing() -> None:
    target = random_search.edge_detector()
    assert target.norm() == pytest.approx(5) and target.sum().abs() < 1e-6
    losses = random_search.Evaluator(target).losses(torch.stack([target, torch.zeros(5, 5)]))
    assert losses.tolist() == pytest.approx([0, 1])


def test_the_distribution_is_that_of_independent_filters() -> None:
    filters = torch.randn(20_000, 5, 5, generator=torch.Generator().manual_seed(0))
    losses = (filters - random_search.edge_detector()).square().sum((1, 2)) / 25
    for level in (0.9, 1.2, 1.6, 2.0, 2.6):
        share = random_search.share_below(level)
        assert (losses <= level).double().mean().item() == pytest.approx(share, abs=4 * (share / 20_000) ** 0.5)
    shares = [random_search.share_below(level) for level in (1e-3, 0.01, 0.1, 1, 2)]
    assert shares == sorted(shares) and 1e-27 < shares[1] < 1e-25


def test_losses_on_noise_follow_the_distribution() -> None:
    filters = torch.randn(500, 5, 5, generator=torch.Generator().manual_seed(1))
    exact = (filters - random_search.edge_detector()).square().sum((1, 2)) / 25
    ratio = random_search.Evaluator(random_search.edge_detector()).losses(filters) / exact
    assert ratio.mean().item() == pytest.approx(1, abs=0.1) and 0.6 < ratio.min() < ratio.max() < 1.5
