"""The modules are PyTorch's, computed by gpuconv."""

import copy
import inspect
import pickle

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import gpuconv

LAYERS = ["Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"]
each_layer = pytest.mark.parametrize("layer", LAYERS)
SETTINGS = [
    {},
    dict(stride=2, padding=1, bias=False),
    dict(padding="same", dilation=2, groups=2),
    dict(padding=2, padding_mode="circular"),
    dict(padding=1, padding_mode="reflect", stride=2),
    dict(padding=1, padding_mode="replicate"),
]
TRANSPOSED_SETTINGS = [
    {},
    dict(stride=2, padding=1, bias=False, output_padding=1),
    dict(dilation=3, groups=2, output_padding=2, padding=1),
]


def image(layer: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn((2, 4, 7, 6, 5)[: 2 + int(layer[-2])], dtype=dtype)


@pytest.mark.parametrize(
    ("layer", "settings"),
    [(name, settings) for name in LAYERS for settings in (TRANSPOSED_SETTINGS if "T" in name else SETTINGS)],
    ids=str,
)
@pytest.mark.parametrize("backend", ["auto", "numpy"])
def test_same_seed_same_layer(layer: str, settings: dict, backend: str) -> None:
    torch.manual_seed(3)
    a = getattr(gpuconv.nn, layer)(4, 6, 3, **settings, dtype=torch.float64)
    torch.manual_seed(3)
    b = getattr(torch.nn, layer)(4, 6, 3, **settings, dtype=torch.float64)
    assert a.state_dict().keys() == b.state_dict().keys()
    assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())
    assert repr(a) == repr(b)
    x = image(layer, torch.float64)
    with gpuconv.use_backend(backend):
        torch.testing.assert_close(a(x), b(x), rtol=0, atol=1e-12)


@each_layer
@pytest.mark.parametrize("lazy", [False, True], ids=["eager", "lazy"])
def test_signatures_are_pytorchs(layer: str, lazy: bool) -> None:
    layer = f"Lazy{layer}" if lazy else layer
    for method in ("__init__", "forward"):
        ours, theirs = (inspect.signature(getattr(getattr(nn, layer), method)) for nn in (gpuconv.nn, torch.nn))
        assert list(ours.parameters) == list(theirs.parameters)


@pytest.mark.parametrize("layer", [name for name in LAYERS if "T" in name])
@pytest.mark.parametrize("batched", [False, True], ids=["unbatched", "batched"])
def test_output_size_chooses_among_the_sizes_that_a_stride_leaves_open(layer: str, batched: bool) -> None:
    ours = getattr(gpuconv.nn, layer)(4, 6, 3, stride=3, dtype=torch.float64)
    theirs = getattr(torch.nn, layer)(4, 6, 3, stride=3, dtype=torch.float64)
    theirs.load_state_dict(ours.state_dict())
    x = image(layer, torch.float64)
    x = x if batched else x[0]
    smallest = ours(x).shape[-int(layer[-2]) :]
    with gpuconv.use_backend("numpy"):
        for more in (0, 1, 2):
            size = [h + more for h in smallest]
            y = ours(x, output_size=size)
            assert list(y.shape[-len(size) :]) == size
            torch.testing.assert_close(y, theirs(x, size), rtol=0, atol=1e-12)
        with pytest.raises(ValueError, match="requested an output size"):
            ours(x, [h + 3 for h in smallest])
        with pytest.raises(ValueError, match="output_size must have"):
            ours(x, [9] * 7)


@each_layer
@pytest.mark.parametrize("batched", [False, True], ids=["unbatched", "batched"])
def test_lazy_layers_become_ours_at_their_first_input(layer: str, batched: bool) -> None:
    x = image(layer, torch.float64)
    lazy = getattr(gpuconv.nn, f"Lazy{layer}")(6, 3, groups=2, dtype=torch.float64, device="cpu")
    torch.manual_seed(3)
    with gpuconv.use_backend("numpy"), FlopCounterMode(display=False) as counter:  # names the ops that ran
        y = lazy(x if batched else x[0])
    assert all("gpuconv" in str(op) for op in counter.get_flop_counts()["Global"])
    assert type(lazy) is getattr(gpuconv.nn, layer) and lazy.in_channels == 4
    torch.manual_seed(3)
    theirs = getattr(torch.nn, layer)(4, 6, 3, groups=2, dtype=torch.float64)
    torch.testing.assert_close(y, theirs(x if batched else x[0]), rtol=0, atol=1e-12)
    for name, value in theirs.state_dict().items():
        assert torch.equal(value, lazy.state_dict()[name])


def test_state_dicts_are_interchangeable() -> None:
    ours, theirs = gpuconv.nn.Conv2d(4, 6, 3), torch.nn.Conv2d(4, 6, 3)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    assert isinstance(ours, torch.nn.Conv2d)


def test_copies_and_pickles() -> None:
    layer = gpuconv.nn.Conv2d(4, 6, 3)
    x = image("Conv2d")
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(other) is gpuconv.nn.Conv2d and torch.equal(other(x), layer(x))


def test_meta_device_and_dtype_arguments() -> None:
    assert gpuconv.nn.Conv2d(4, 6, 3, device="meta", dtype=torch.bfloat16).weight.device.type == "meta"


def test_a_step_of_training_changes_every_parameter() -> None:
    net = torch.nn.Sequential(gpuconv.nn.Conv2d(4, 6, 3), torch.nn.ReLU(), gpuconv.nn.Conv2d(6, 2, 3))
    before = [p.clone() for p in net.parameters()]
    with gpuconv.use_backend("numpy"):
        net(image("Conv2d")).square().sum().backward()
    torch.optim.SGD(net.parameters(), 0.1).step()
    assert not any(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
