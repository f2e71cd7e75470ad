"""The ops in compiled and exported programs, without a graph break, and under the flop counter."""

import io

import pytest
import torch
from lanes import Lane, each_of_ours
from small_problem import SETTINGS, SHAPES, conv, same, tensors
from torch.utils.flop_counter import FlopCounterMode

import gpuconv


@each_of_ours
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
def test_compiles_without_a_graph_break(lane: Lane, dynamic: bool, layout: torch.memory_format) -> None:
    torch._dynamo.reset()

    def f(x, w, b):
        return conv(lane)(x.relu(), w, b).square().sum()

    compiled = torch.compile(f, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    n, c, _, width = SHAPES[0]
    for size in (5, 7):
        _, w, b = tensors(lane)
        x = torch.randn(n, c, size, width, dtype=torch.float64, device=lane.device).contiguous(memory_format=layout)
        x.requires_grad_()
        got = torch.autograd.grad(compiled(x, w, b), (x, w, b))
        expected = torch.autograd.grad(f(x, w, b), (x, w, b))
        for g, e in zip(got, expected, strict=True):
            torch.testing.assert_close(g, e, rtol=1e-12, atol=1e-12)


def once_on_the_cpu(lane: Lane) -> None:
    """Skip the slower backends of the CPU where nothing depends on which it is."""
    if lane.device == "cpu" and lane.backend != "numpy":
        pytest.skip("numpy has shown it: nothing here depends on the backend, and this one is slow")


class Six(torch.nn.Module):
    """One layer of each kind, side by side."""

    def __init__(self, nn, dtype: torch.dtype = torch.float64, device: str = "cpu") -> None:
        super().__init__()
        torch.manual_seed(0)
        settings = dict(stride=2, padding=1, groups=2, dtype=dtype, device=device)
        self.layers = torch.nn.ModuleList()
        for d in (1, 2, 3):
            self.layers.append(getattr(nn, f"Conv{d}d")(4, 6, 3, **settings))
            self.layers.append(getattr(nn, f"ConvTranspose{d}d")(4, 6, 3, **settings, output_padding=1))

    def forward(self, *images: torch.Tensor) -> list[torch.Tensor]:
        return [layer(images[i // 2]) for i, layer in enumerate(self.layers)]


def three_images(dtype: torch.dtype, device: str, size: int = 4) -> list[torch.Tensor]:
    """One for each number of axes."""
    shapes = [(2, 4, *(size, 3, 5)[:d]) for d in (1, 2, 3)]
    return [torch.randn(shape, dtype=dtype, device=device, requires_grad=True) for shape in shapes]


def gradients(net, images: list[torch.Tensor], parameters) -> list[torch.Tensor]:
    loss = sum((y * y.conj()).real.sum() for y in net(*images))
    return list(torch.autograd.grad(loss, (*images, *parameters)))


@each_of_ours
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_every_function_compiles_without_a_graph_break(lane: Lane, dynamic: bool) -> None:
    once_on_the_cpu(lane)
    for dtype in (torch.float64, torch.complex128) if not dynamic else (torch.float64,):
        torch._dynamo.reset()
        net, theirs = Six(gpuconv.nn, dtype, lane.device), Six(torch.nn, dtype, lane.device)
        compiled = torch.compile(net, fullgraph=True, dynamic=dynamic, backend="aot_eager")
        for size in (4, 6)[: 1 + dynamic]:
            images = three_images(dtype, lane.device, size)
            with gpuconv.use_backend(lane.backend):
                got = gradients(compiled, images, net.parameters())
            same(got, gradients(theirs, images, theirs.parameters()))


@each_of_ours
def test_every_layer_is_exported_with_its_gradients(lane: Lane) -> None:
    once_on_the_cpu(lane)
    net = Six(gpuconv.nn, device=lane.device)
    auto = torch.export.Dim.AUTO
    images = three_images(torch.float64, lane.device)
    with gpuconv.use_backend(lane.backend):
        program = torch.export.export(
            net, tuple(images), dynamic_shapes={"images": tuple({0: auto, 2: auto} for _ in images)}
        )
        text = str(program.graph)
        assert text.count("gpuconv.conv_forward") == text.count("gpuconv.conv_grad_input") == 3
        images = three_images(torch.float64, lane.device, 7)
        expected = gradients(net, images, net.parameters())
    loaded = program.module()
    same(
        gradients(loaded, images, [dict(loaded.named_parameters())[name] for name, _ in net.named_parameters()]),
        expected,
    )


@each_of_ours
def test_the_flop_counter_counts_what_it_counts_for_pytorch(lane: Lane) -> None:
    once_on_the_cpu(lane)
    images = three_images(torch.float64, lane.device)
    counts = []
    for nn, backend in ((torch.nn, "aten"), (gpuconv.nn, lane.backend)):
        net = Six(nn, device=lane.device)
        with gpuconv.use_backend(backend), FlopCounterMode(display=False) as counter:
            outputs = net(*images)
            forward = counter.get_total_flops()
            sum(y.sum() for y in outputs).backward()
        by_layer = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
        counts.append((forward, by_layer))
    assert counts[0] == counts[1]
    assert 0 < counts[0][0] < counts[0][1]["Global"]


@each_of_ours
def test_compiled_code_follows_use_backend(lane: Lane) -> None:
    torch._dynamo.reset()
    x, w, b = tensors(lane, False)
    graphs = []

    def look(graph, _):
        graphs.append(str(graph.graph))
        return graph.forward

    compiled = torch.compile(lambda x: gpuconv.conv2d(x, w, b, **SETTINGS), fullgraph=True, backend=look)
    with gpuconv.use_backend("aten"):
        compiled(x)
    with gpuconv.use_backend(lane.backend):
        compiled(x)
    assert "gpuconv" not in graphs[0] and f"backend={lane.backend}" in graphs[1]


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = gpuconv.nn.Conv2d(SHAPES[0][1], SHAPES[1][0], SHAPES[1][2:], **SETTINGS).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).relu()


@each_of_ours
@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
def test_an_exported_program_saved_and_loaded_still_gives_gradients(lane: Lane, strict: bool) -> None:
    net = Net().to(lane.device)
    x = tensors(lane)[0]
    with gpuconv.use_backend(lane.backend):
        program = torch.export.export(net, (x,), strict=strict)
        file = io.BytesIO()
        torch.export.save(program, file)
        file.seek(0)
        loaded = torch.export.load(file).module()
        assert "conv_forward" in str(program.graph)
        expected = net(x)
    got = loaded(x)
    torch.testing.assert_close(got, expected)
    expected_gx, expected_gw = torch.autograd.grad(expected.sum(), (x, net.conv.weight))
    (got_gx,) = torch.autograd.grad(got.sum(), x, retain_graph=True)
    got.sum().backward()
    torch.testing.assert_close(got_gx, expected_gx)
    torch.testing.assert_close(dict(loaded.named_parameters())["conv.weight"].grad, expected_gw)
