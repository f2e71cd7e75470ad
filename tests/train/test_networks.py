"""The networks by name: their sizes, what they measure, and that others' are converted."""

import dataclasses

import pytest
import torch

import gpuconv
from gpuconv.errors import UserError
from gpuconv.train import data as datasets, loop, networks
from gpuconv.train.config import Config
from gpuconv.train.networks import NETWORKS, Normalize

# weights of each for 3×32×32 and ten classes; resnet18 and airbench94 as published
WEIGHTS = {
    "small": 95_818 - 9_544,
    "tutorial": 32_570,
    "resnet9": 6_573_120,
    "resnet18": 11_173_962,
    "airbench94": 1_972_792,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_scores_cifar10s_images_by_our_convolutions(name: str) -> None:
    network = networks.build(name, (3, 32, 32), 10)
    assert network.eval()(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    convolutions = [module for module in network.modules() if isinstance(module, torch.nn.Conv2d)]
    assert convolutions and all(isinstance(module, gpuconv.nn.Conv2d) for module in convolutions)


@pytest.mark.parametrize("name", ["tutorial", "resnet9", "resnet18", "airbench94"])
def test_a_network_has_the_published_number_of_weights(name: str) -> None:
    network = networks.build(name, (3, 32, 32), 10)
    assert sum(weight.numel() for weight in network.parameters()) == WEIGHTS[name]


def test_the_network_normalises_what_it_was_measured_on() -> None:
    images = torch.rand(1500, 3, 4, 5, generator=torch.Generator().manual_seed(0)) * 3 + 7
    images[:, 2] = 0.25
    module = Normalize(3)
    module.measure(images * 8, 8)
    out = module(images)
    assert out.mean((0, 2, 3)).tolist() == pytest.approx([0, 0, 0], abs=1e-4)
    assert out.std((0, 2, 3)).tolist() == pytest.approx([1, 1, 0], abs=1e-4)
    assert set(module.state_dict()) == {"mean", "std"}


def test_airbench94_whitens_the_patches_of_its_training_images() -> None:
    smooth = torch.nn.functional.avg_pool2d(
        torch.rand(200, 3, 35, 35, generator=torch.Generator().manual_seed(0)), 4, 1
    )
    network = networks.build("airbench94", (3, 32, 32), 10)
    networks.measure(network, smooth, 1.0)
    with torch.no_grad():
        found = network.whiten(network.normalize(smooth))
    assert torch.equal(found[:, :12], -found[:, 12:])
    covariance = torch.cov(found[:, :12].transpose(0, 1).flatten(1))
    assert (covariance - covariance.diagonal().diag()).abs().max() < 1e-3
    # its weakest directions are damped: λ / (λ + 5·10⁻⁴)
    assert covariance.diagonal().max() == pytest.approx(1, abs=0.01)


def test_batchnorms_shifts_of_airbench94_learn_quickly() -> None:
    network = networks.build("airbench94", (3, 32, 32), 10)
    slow, quick = loop.Training(network, Config(weight_decay=0.64), 100).optimizer.param_groups
    assert (slow["scale"], quick["scale"]) == (1, 64)
    assert slow["weight_decay"] == 0.64 and quick["weight_decay"] == 0.01
    assert (
        len(quick["params"]) == 6 and len(slow["params"]) == 8
    )  # the whitening filters and BatchNorm's scales are fixed


@pytest.mark.parametrize("name", ["timm:resnet18", "torchvision:resnet18"])
def test_a_network_of_a_library_is_converted_and_normalises(name: str) -> None:
    pytest.importorskip(name.split(":")[0], reason=f"{name.split(':')[0]} is not installed")
    network = networks.build(name, (3, 40, 40), 7)
    assert network(torch.rand(2, 3, 40, 40)).shape == (2, 7)
    assert not isinstance(network.net.conv1, torch.nn.Conv2d) or isinstance(network.net.conv1, gpuconv.nn.Conv2d)
    assert isinstance(network.normalize, Normalize)


@pytest.mark.parametrize("name", ["timm:no_such_net", "torchvision:no_such_net"])
def test_a_name_that_a_library_does_not_have_is_told(name: str) -> None:
    library, theirs = name.split(":")
    pytest.importorskip(library, reason=f"{library} is not installed")
    with pytest.raises(UserError, match=f"{library} cannot make a model '{theirs}'"):
        networks.build(name, (3, 32, 32), 10)


def test_images_that_a_network_cannot_take_are_told() -> None:
    data = datasets.load(Config())
    for name in ("airbench94", "tutorial"):
        small = dataclasses.replace(data, images=data.images[:, :, :4, :4])
        with pytest.raises(UserError, match=f"model {name} cannot be trained on images of 1×4×4: ."):
            loop.dry_run(networks.build(name, (1, 4, 4), 10), small, Config(model=name))
