"""The modules are PyTorch's, computed by gpuconv."""

import copy
import pickle

import pytest
import torch

import gpuconv

PAIRS = [(gpuconv.nn.Conv1d, torch.nn.Conv1d), (gpuconv.nn.Conv2d, torch.nn.Conv2d)]
SETTINGS = [
    {},
    dict(stride=2, padding=1, bias=False),
    dict(padding="same", dilation=2, groups=2),
    dict(padding=2, padding_mode="circular"),
    dict(padding=1, padding_mode="reflect", stride=2),
]


def image(ours: type, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn((2, 4, 11) if ours is gpuconv.nn.Conv1d else (2, 4, 11, 9), dtype=dtype)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=["Conv1d", "Conv2d"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("backend", ["auto", "numpy"])
def test_same_seed_same_layer(ours: type, theirs: type, settings: dict, backend: str) -> None:
    torch.manual_seed(3)
    a = ours(4, 6, 3, **settings, dtype=torch.float64)
    torch.manual_seed(3)
    b = theirs(4, 6, 3, **settings, dtype=torch.float64)
    assert a.state_dict().keys() == b.state_dict().keys()
    assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())
    assert repr(a) == repr(b)
    x = image(ours, torch.float64)
    with gpuconv.use_backend(backend):
        torch.testing.assert_close(a(x), b(x), rtol=0, atol=1e-12)


def test_state_dicts_are_interchangeable() -> None:
    ours, theirs = gpuconv.nn.Conv2d(4, 6, 3), torch.nn.Conv2d(4, 6, 3)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    assert isinstance(ours, torch.nn.Conv2d)


def test_copies_and_pickles() -> None:
    layer = gpuconv.nn.Conv2d(4, 6, 3)
    x = image(gpuconv.nn.Conv2d)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(other) is gpuconv.nn.Conv2d and torch.equal(other(x), layer(x))


def test_meta_device_and_dtype_arguments() -> None:
    assert gpuconv.nn.Conv2d(4, 6, 3, device="meta", dtype=torch.bfloat16).weight.device.type == "meta"


def test_a_step_of_training_changes_every_parameter() -> None:
    net = torch.nn.Sequential(gpuconv.nn.Conv2d(4, 6, 3), torch.nn.ReLU(), gpuconv.nn.Conv2d(6, 2, 3))
    before = [p.clone() for p in net.parameters()]
    with gpuconv.use_backend("numpy"):
        net(image(gpuconv.nn.Conv2d)).square().sum().backward()
    torch.optim.SGD(net.parameters(), 0.1).step()
    assert not any(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
