"""The schedule, the network, and what a few steps of training do."""

import dataclasses
import itertools

import pytest
import torch

import gpuconv
from gpuconv.train import loop
from gpuconv.train.config import DEFAULT_LR, Config, UserError
from gpuconv.train.data import DATASETS
from gpuconv.train.model import NETWORKS, Normalize

CPU = torch.device("cpu")


def losses(config: Config, steps: int = 4) -> torch.Tensor:
    data = DATASETS[config.data]().to(CPU, config.weight_dtype)
    torch.manual_seed(config.seed)
    network = NETWORKS[config.model](data.image_shape, len(data.classes)).to(CPU, config.weight_dtype)
    with gpuconv.use_backend(config.backend):
        return torch.tensor([at.loss() for at in itertools.islice(loop.fit(network, data, config), steps)])


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 10, 1001])
def test_the_rate_rises_to_its_peak_and_falls_and_is_never_zero(steps: int) -> None:
    rates = [loop.one_cycle(step, steps, 0.5) for step in range(steps)]
    peak = rates.index(max(rates))
    assert max(rates) == 0.5 and min(rates) > 0
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


def test_the_network_normalises_what_it_was_measured_on() -> None:
    images = torch.rand(500, 3, 4, 5, generator=torch.Generator().manual_seed(0)) * 3 + 7
    images[:, 2] = 0.25
    module = Normalize(3)
    module.measure(images)
    out = module(images)
    assert out.mean((0, 2, 3)).tolist() == pytest.approx([0, 0, 0], abs=1e-4)
    assert out.std((0, 2, 3)).tolist() == pytest.approx([1, 1, 0], abs=1e-4)
    assert set(module.state_dict()) == {"mean", "std"}


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


@pytest.mark.parametrize("loss", ["cross-entropy", "mse"])
def test_steps_on_one_batch_lower_its_loss(loss: str) -> None:
    data = DATASETS["digits"]()
    one_batch = dataclasses.replace(data, images=data.images[:32].float(), labels=data.labels[:32])
    network = NETWORKS["small"](one_batch.image_shape, 10)
    config = Config(loss=loss, steps=80, batch_size=32, lr=DEFAULT_LR[loss])
    seen = [at.loss() for at in loop.fit(network, one_batch, config)]
    assert len(seen) == 80
    assert seen[-1] < seen[0] / 2


def test_mse_is_the_mean_square_distance_to_one_hot_targets() -> None:
    outputs = torch.tensor([[0.0, 1.0, 0.5], [1.0, 0.0, 0.0]], dtype=torch.float64)
    assert loop._LOSSES["mse"](outputs, torch.tensor([1, 2])) == pytest.approx((0.25 + 1 + 1) / 6)


@pytest.mark.parametrize(
    ("epochs", "steps", "expected"),
    [(None, None, 40 * 23), (2, None, 46), (None, 5, 5), (None, 5000, 5000), (2, 5, 5), (2, 5000, 46)],
)
def test_epochs_and_steps_each_limit_a_run(epochs: int | None, steps: int | None, expected: int) -> None:
    assert Config(epochs=epochs, steps=steps).length(1442) == (expected, 23)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"data": "cats"}, "data must be one of digits, but got 'cats'"),
        ({"model": "huge"}, "model must be one of small, but got 'huge'"),
        ({"loss": "hinge"}, "loss must be one of cross-entropy, mse, but got 'hinge'"),
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
        ({"seed": -1}, "seed must be from 0 to 4294967295, but got -1"),
    ],
    ids=lambda value: "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_a_wrong_setting_is_named_with_what_was_expected_and_what_came(
    setting: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        dataclasses.replace(Config(), **setting).check()
