"""The digits: how they are split, and what a training epoch makes of them."""

import torch

from gpuconv.train.data import DATASETS, Data, epoch_batches


def digits() -> Data:
    return DATASETS["digits"]()


def test_a_fifth_of_every_digit_is_held_out_and_no_image_is_lost() -> None:
    data = digits()
    assert len(data.labels) + len(data.test_labels) == 1797
    for digit in range(10):
        held_out, kept = (data.test_labels == digit).sum(), (data.labels == digit).sum()
        assert held_out == (held_out + kept) // 5


def test_images_lie_between_0_and_1_in_the_type_asked_for() -> None:
    data = digits().to(torch.device("cpu"), torch.float32)
    assert data.image_shape == (1, 8, 8)
    for images in (data.images, data.test_images):
        assert images.dtype == torch.float32
        assert images.min() == 0 and images.max() == 1


def test_an_epoch_sees_every_image_once() -> None:
    data = digits()
    batches = list(epoch_batches(data, 100, seed=0, epoch=1))
    assert [len(labels) for _, labels in batches] == [100] * 14 + [len(data.labels) - 1400]
    assert torch.equal(torch.cat([labels for _, labels in batches]).bincount(), data.labels.bincount())


def test_seed_and_epoch_alone_decide_what_an_epoch_sees() -> None:
    def seen(seed: int, epoch: int) -> torch.Tensor:
        torch.rand(1)  # the global generator has no say
        return torch.cat([images for images, _ in epoch_batches(data, 64, seed, epoch)])

    data = digits()
    assert torch.equal(seen(3, 5), seen(3, 5))
    assert not torch.equal(seen(3, 5), seen(3, 6))
    assert not torch.equal(seen(3, 5), seen(4, 5))


def test_training_images_are_whole_images_moved_by_at_most_one_pixel() -> None:
    data = digits()
    padded = torch.nn.functional.pad(data.images, (1, 1, 1, 1))
    moved = torch.stack([padded[:, :, y : y + 8, x : x + 8] for y in range(3) for x in range(3)])  # [9, N, 1, 8, 8]
    images, labels = next(epoch_batches(data, 50, seed=1, epoch=1))
    for image, label in zip(images, labels, strict=True):
        _, which = (moved == image).flatten(2).all(2).nonzero(as_tuple=True)
        assert label in data.labels[which]
