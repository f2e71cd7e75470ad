"""Networks of torchvision and timm, converted: same logits, same gradients of every parameter, no graph breaks.

By default on 32 × 32 images and in evaluation mode, where BatchNorm over two images does not amplify rounding errors to
noise; with --full also the larger networks, training mode and, for `aten`, full size.
"""

import contextlib

import models
import pytest
import torch
from lanes import INTERPRETING, LANES, Lane

import gpuconv

QUICK = ["resnet18", "mobilenet_v2", "convnext_tiny", "efficientnet_b0", "densenet121", "deeplabv3_resnet50"]
QUICK += ["resnext50_32x4d", "convmixer_768_32", "tf_efficientnet_b0", "test_nfnet"]
SLOW_TO_COMPUTE = {
    "triton": ["test_resnet"],
    "cuda": ["test_resnet"],
}  # on a CPU, where they are interpreted or run by the host check
MORE_WITH_FULL = {"triton": ["resnet18"], "cuda": ["resnet18", "mobilenet_v2"]}

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have a deterministic implementation:UserWarning"),
    pytest.mark.timeout(1800),
]
full_only = pytest.mark.full


def cases() -> list[object]:
    """Each network on each lane, those that take long only with --full."""
    found = []
    for lane in LANES:
        if lane == Lane("aten", "cpu"):
            continue  # it is PyTorch itself, see test_auto_on_the_cpu_is_pytorch_itself
        slow = lane.device == "cpu" and lane.backend in SLOW_TO_COMPUTE
        quick = SLOW_TO_COMPUTE[lane.backend] if slow else QUICK
        more = [name for name in (MORE_WITH_FULL[lane.backend] if slow else models.MODELS) if name not in quick]
        found += [pytest.param(lane, name, id=f"{lane}-{name}") for name in quick]
        found += [pytest.param(lane, name, id=f"{lane}-{name}", marks=full_only) for name in more]
    return found


def quick_ones(*names: str) -> list[object]:
    """All networks, of which these run without --full."""
    return [pytest.param(name, marks=() if name in names else full_only) for name in QUICK]


def converted(model: torch.nn.Module, stack: contextlib.ExitStack) -> torch.nn.Module:
    """`model` converted, within patch() if some of it has a forward of its own."""
    if gpuconv.convert(model).kept:
        stack.enter_context(gpuconv.patch())
    return model


@pytest.mark.parametrize(("lane", "name"), cases())
def test_same_logits_and_gradients(lane: Lane, name: str) -> None:
    def run(dtype: torch.dtype, ours: bool) -> models.Step:
        model = models.make(name, dtype).eval().to(lane.device)
        x = models.images(32, dtype=dtype).to(lane.device)
        with contextlib.ExitStack() as stack:
            stack.enter_context(kinks.run())
            if ours:
                model = converted(model, stack)
                stack.enter_context(gpuconv.use_backend(lane.backend))
            return models.step(model, x)

    kinks = models.SameKinks()
    exact = run(torch.float64, ours=False)
    check_float64(run(torch.float64, ours=True), exact)
    stock, ours = run(torch.float32, ours=False), run(torch.float32, ours=True)
    for got, other, true in (
        (ours.logits, stock.logits, exact.logits),
        (ours.all_gradients(), stock.all_gradients(), exact.all_gradients()),
    ):
        assert models.error(got, true) <= 2 * models.error(other, true)


def check_float64(got: models.Step, exact: models.Step) -> None:
    assert models.error(got.logits, exact.logits) <= 1e-9
    assert got.gradients.keys() == exact.gradients.keys()
    # A bias before BatchNorm has the gradient 0, and rounding errors of all the others instead.
    least = 1e-6 * float(exact.all_gradients().norm())
    errors = {name: models.error(got.gradients[name], g, least) for name, g in exact.gradients.items()}
    worst = max(errors, key=errors.__getitem__)
    assert errors[worst] <= 1e-9, f"{worst}: {errors[worst]:.1e}"


@pytest.mark.skipif(INTERPRETING, reason="this process tests Triton's kernels alone")
@pytest.mark.parametrize("name", quick_ones("resnet18", "test_nfnet"))
def test_same_in_training_mode_running_statistics_included(name: str) -> None:
    stock, ours, x = models.make(name, torch.float64), models.make(name, torch.float64), models.images(64).double()
    exact = models.step(stock, x)
    with contextlib.ExitStack() as stack:
        converted(ours, stack)
        stack.enter_context(gpuconv.use_backend("numpy"))
        check_float64(models.step(ours, x), exact)
    for (key, got), (_, expected) in zip(ours.named_buffers(), stock.named_buffers(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12, msg=key)


@pytest.mark.skipif(INTERPRETING, reason="this process tests Triton's kernels alone")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", quick_ones("resnet18", "test_nfnet"))
def test_auto_on_the_cpu_is_pytorch_itself(name: str, dtype: torch.dtype, request: pytest.FixtureRequest) -> None:
    size = 224 if request.config.getoption("--full") else 64
    stock, ours, x = models.make(name, dtype), models.make(name, dtype), models.images(size, dtype=dtype)
    expected = models.step(stock, x)
    with contextlib.ExitStack() as stack:
        got = models.step(converted(ours, stack), x)
    assert torch.equal(got.logits, expected.logits)
    assert torch.equal(got.all_gradients(), expected.all_gradients())


@pytest.mark.skipif(INTERPRETING, reason="this process tests Triton's kernels alone")
@pytest.mark.parametrize("name", quick_ones("convnext_tiny", "test_nfnet"))
def test_compiles_without_graph_breaks(name: str) -> None:
    torch._dynamo.reset()  # Dynamo finds the graph breaks, so that no more need run; for Inductor see test_convert.py
    model, x = models.make(name), models.images(64)
    with contextlib.ExitStack() as stack:
        converted(model, stack)
        stack.enter_context(gpuconv.use_backend("numpy"))
        got = models.step(torch.compile(model, backend="eager", fullgraph=True), x)
        expected = models.step(model, x)
    assert models.error(got.logits, expected.logits) <= 1e-4
