"""The strongest patches, against a search by hand."""

import itertools

import pytest
import torch
from torch import nn

from gpuconv import see
from gpuconv.errors import UserError
from gpuconv.see import features


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3), nn.ReLU())


def test_of_many_images_each_gives_its_strongest_window(model: nn.Sequential) -> None:
    images = torch.rand(70, 3, 18, 16)
    found = see.top_patches(model, images, "4", 2)
    with torch.no_grad():
        strongest = model(images)[:, 2].amax((1, 2))
    assert [patch.image for patch in found.found] == strongest.argsort(descending=True)[:9].tolist()
    assert [patch.activation for patch in found.found] == pytest.approx(
        strongest.sort(descending=True).values[:9].tolist()
    )
    assert found.values.shape == (9, 3, 8, 8)  # (3 + 1) + 2 · 2
    for patch, values in zip(found.found, found.values, strict=True):
        assert torch.equal(patch.cut(images), values)


def test_a_window_is_what_its_activation_depends_on(model: nn.Sequential) -> None:
    images = torch.rand(12, 3, 18, 16)
    for patch in see.top_patches(model, images, "4", 2, count=4).found:
        changed = images.clone()
        changed[patch.image] = 7
        rows, columns = slice(*patch.rows), slice(*patch.columns)
        changed[patch.image, :, rows, columns] = images[patch.image, :, rows, columns]
        with torch.no_grad():
            again = model(changed)[patch.image, 2, patch.at[0], patch.at[1]]
        assert again == pytest.approx(patch.activation)


def test_of_one_image_windows_overlap_by_half_at_most(model: nn.Sequential) -> None:
    found = see.top_patches(model, torch.rand(1, 3, 40, 40), "1", 0).found
    assert len(found) == 9 and all(a.activation >= b.activation for a, b in itertools.pairwise(found))
    for i, a in enumerate(found):
        for b in found[:i]:
            assert abs(a.rows[0] - b.rows[0]) >= 1.5 or abs(a.columns[0] - b.columns[0]) >= 1.5


def test_a_channel_that_is_not_there_is_told(model: nn.Sequential) -> None:
    with pytest.raises(UserError, match="channel must be from 0 to 4 in layer '4', but got 5"):
        see.top_patches(model, torch.rand(1, 3, 18, 16), "4", 5)


def test_features_come_with_projections_of_their_patches(model: nn.Sequential) -> None:
    images = torch.rand(12, 3, 18, 16)
    shown = features.find(model, images, images, "4", channels=2, count=3)
    assert len(shown.features) == 2 and shown.field == (8, 8)
    for feature in shown.features:
        whole = see.deconvnet(model, images[feature.patches[0].image], "4", feature.channel, feature.patches[0].at)
        rows, columns = feature.patches[0].rows, feature.patches[0].columns
        assert torch.equal(feature.projections[0], whole.values[:, slice(*rows), slice(*columns)])
        assert whole.values.abs().sum() == pytest.approx(feature.projections[0].abs().sum())  # nothing lies outside
