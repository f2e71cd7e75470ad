"""The schedules, the losses, the settings, and what a few steps of training do."""

import dataclasses
import itertools

import pytest
import torch
import torch.nn.functional as F

import gpuconv
from gpuconv.errors import UserError
from gpuconv.train import data as datasets, loop, networks
from gpuconv.train.config import MODELS, Config

CPU = torch.device("cpu")


def begin(config: Config) -> tuple[loop.Training, datasets.Data]:
    data = datasets.load(config)
    torch.manual_seed(config.seed)
    network = networks.build(config.model, data.image_shape, len(data.classes), config.channels_last)
    return loop.Training(network.to(CPU, config.weight_dtype), config, len(data.labels)), data


def losses(config: Config, steps: int = 4) -> torch.Tensor:
    training, data = begin(config)
    with gpuconv.use_backend(config.backend):
        return torch.tensor([at.loss() for at in itertools.islice(loop.fit(training, data, config), steps)])


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 10, 1001])
@pytest.mark.parametrize("schedule", ["one-cycle", "cosine"])
def test_the_rate_has_one_peak_and_is_never_zero(schedule: str, steps: int) -> None:
    rates = [loop.learning_rate(step, steps, Config(lr=0.5, schedule=schedule)) for step in range(steps)]
    peak = rates.index(max(rates))
    assert max(rates) == 0.5 and min(rates) > 0
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert schedule == "one-cycle" or peak == 0


def test_the_numpy_backend_gives_the_losses_of_pytorch_to_four_digits() -> None:
    torch.testing.assert_close(
        losses(Config(backend="numpy"), 6), losses(Config(backend="aten"), 6), rtol=5e-5, atol=0
    )  # fmt: skip


def test_in_float64_the_numpy_backend_gives_the_losses_of_pytorch_to_nine_digits() -> None:
    a, b = (losses(Config(backend=name, dtype="float64"), 6) for name in ("numpy", "aten"))
    torch.testing.assert_close(a, b, rtol=1e-9, atol=0)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_every_type_starts_from_the_same_loss_and_learns_alike(dtype: str) -> None:
    got, expected = losses(Config(dtype=dtype, lr=0.01)), losses(Config(lr=0.01))
    torch.testing.assert_close(got, expected, rtol=0.02 if dtype in ("bfloat16", "float16") else 1e-4, atol=0)


def test_channels_last_changes_the_layout_and_not_the_losses() -> None:
    config = Config(dtype="float64")
    torch.testing.assert_close(
        losses(dataclasses.replace(config, channels_last=True)), losses(config), rtol=1e-12, atol=0
    )
    training, _ = begin(dataclasses.replace(config, channels_last=True))
    assert training.network.conv2.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("settings", [{}, {"loss": "mse", "lr": 0.5}, {"optimizer": "adamw", "lr": 0.002}], ids=str)
def test_steps_on_one_batch_lower_its_loss(settings: dict[str, object]) -> None:
    config = Config(steps=60, batch_size=32, **settings)
    training, data = begin(config)
    one_batch = dataclasses.replace(data, images=data.images[:32], labels=data.labels[:32])
    training = loop.Training(training.network, config, 32)
    seen = [at.loss() for at in loop.fit(training, one_batch, config)]
    assert len(seen) == 60
    assert seen[-1] < seen[0] / 2


def test_sgd_and_the_schedule_are_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(dtype="float64", steps=6, label_smoothing=0.1, clip=0.7)
    training, data = begin(config)
    network = gpuconv.revert(begin(config)[0].network)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True)
    for _, (images, labels, _) in zip(
        loop.fit(training, data, config), datasets.epoch_batches(data, config, 1), strict=False
    ):
        optimizer.param_groups[0]["lr"] = training.at.lr
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels, label_smoothing=0.1).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 0.7)
        optimizer.step()
    for name, value in network.state_dict().items():
        torch.testing.assert_close(training.network.state_dict()[name], value, rtol=1e-11, atol=1e-13)


def test_mse_is_the_mean_square_distance_to_one_hot_targets() -> None:
    outputs, labels = torch.tensor([[0.0, 1.0, 0.5], [1.0, 0.0, 0.0]], dtype=torch.float64), torch.tensor([1, 2])
    assert loop.loss_sum(outputs, labels, Config(loss="mse")) / 2 == pytest.approx((0.25 + 1 + 1) / 6)
    smooth = F.one_hot(labels, 3) * 0.7 + 0.1
    smoothed = loop.loss_sum(outputs, labels, Config(loss="mse", label_smoothing=0.3)) / 2
    assert smoothed == pytest.approx(F.mse_loss(outputs, smooth.double()).item())


def test_the_average_is_that_of_the_weights_with_a_decay_that_begins_small() -> None:
    config = Config(ema=0.9, steps=30, dtype="float64")
    training, data = begin(config)
    expected = {name: value.clone() for name, value in training.network.state_dict().items()}
    for at in loop.fit(training, data, config):
        decay = min(0.9, at.step / (9 + at.step))
        for name, value in training.network.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value
    for name, value in training.network_to_save.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-14)


def test_flip_averaging_judges_an_image_and_its_mirror_image_alike() -> None:
    training, data = begin(Config())
    images = data.pixels(data.images[:9], torch.float32)
    with torch.no_grad():
        one, other = (
            loop.evaluation_outputs(training.network, x, Config(flip_test=True)) for x in (images, images.flip(3))
        )
        plain = loop.evaluation_outputs(training.network, images, Config())
    torch.testing.assert_close(one, other)
    assert not torch.allclose(one, plain)


@pytest.mark.parametrize(
    ("epochs", "steps", "expected"),
    [(None, None, 40 * 23), (2, None, 46), (None, 5, 5), (None, 5000, 5000), (2, 5, 5), (2, 5000, 46)],
)
def test_epochs_and_steps_each_limit_a_run(epochs: int | None, steps: int | None, expected: int) -> None:
    assert Config(epochs=epochs, steps=steps).length(1442) == (expected, 23)


def test_what_is_left_out_suits_the_rest() -> None:
    assert Config.given(device="cpu") == Config(shift=1)
    tutorial = Config.given(data="cifar10:x", model="tutorial", lr=None)
    assert (tutorial.epochs, tutorial.batch_size, tutorial.flip, tutorial.shift) == (8, 128, True, 1)
    assert Config.given(data="cifar10:x", model="tutorial", steps=3, flip=False).epochs is None
    assert Config.given(loss="mse").lr == 0.5 and Config.given(optimizer="adamw").lr == 2e-3
    for model in MODELS:
        Config.given(model=model.replace("NAME", "resnet18"), device="cpu").check()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            {"data": "cats"},
            "data must be one of digits, cifar10:DIR, cifar100:DIR, mnist:DIR, folder:DIR, npz:FILE, but got 'cats'",
        ),
        ({"data": "digits:x"}, "data must be one of digits, .* but got 'digits:x'"),
        ({"data": "mnist:"}, "data must be one of digits, .* but got 'mnist:'"),
        ({"model": "huge"}, "model must be one of small, tutorial, .*, timm:NAME, torchvision:NAME, but got 'huge'"),
        ({"model": "timm"}, "model must be one of small, .* but got 'timm'"),
        ({"loss": "hinge"}, "loss must be one of cross-entropy, mse, but got 'hinge'"),
        ({"optimizer": "lion"}, "optimizer must be one of sgd, adamw, but got 'lion'"),
        ({"schedule": "steps"}, "schedule must be one of one-cycle, cosine, but got 'steps'"),
        ({"dtype": "int8"}, "dtype must be one of float32, float64, bfloat16, float16, but got 'int8'"),
        ({"backend": "abacus"}, "backend must be one of auto, .*, but got 'abacus'"),
        ({"device": "tpu"}, "device must be cpu, cuda or cuda:N, but got 'tpu'"),
        ({"device": "cuda:-1"}, "device must be cpu, cuda or cuda:N, but got 'cuda:-1'"),
        ({"device": "cuda:99"}, "device 'cuda:99' is not there: PyTorch finds .* GPU"),
        ({"epochs": 0}, "epochs must be at least 1, but got 0"),
        ({"steps": -1}, "steps must be at least 1, but got -1"),
        ({"batch_size": 0}, "batch size must be at least 1, but got 0"),
        ({"lr": 0.0}, "lr must be a positive number, but got 0.0"),
        ({"lr": float("nan")}, "lr must be a positive number, but got nan"),
        ({"lr": float("inf")}, "lr must be a positive number, but got inf"),
        ({"momentum": 1.0}, "momentum must be from 0 to less than 1, but got 1.0"),
        ({"clip": -1.0}, "clip must be 0 or more, but got -1.0"),
        ({"ema": float("nan")}, "ema must be from 0 to less than 1, but got nan"),
        ({"shift": -1}, "shift must be 0 or more, but got -1"),
        ({"seed": -1}, "seed must be from 0 to 4294967295, but got -1"),
    ],
    ids=lambda value: "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_a_wrong_setting_is_named_with_what_was_expected_and_what_came(
    setting: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        dataclasses.replace(Config(), **setting).check()
