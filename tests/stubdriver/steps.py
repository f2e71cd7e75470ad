"""Training steps on GPUs that are none, and whether what they compute is right: parts of driven_by_torch.py.

gpuconv's kernels are executed by the emulator (`executor`), PyTorch's own by its kernels for the CPU (`on_host`). Every
convolution is held to the oracle on what it was given; graphs, threads, streams and compiled code have to give the same
bits.
"""

import copy
import ctypes
import functools
import re
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import executor
import on_host
import refused
import stubdriver
import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

import gpuconv
from gpuconv import emulator, reference
from gpuconv.planning import plan
from gpuconv.problem import ConvProblem
from gpuconv.reference import as_numpy, assert_close_to_oracle

LAST, FIRST = torch.channels_last, torch.contiguous_format
driver = stubdriver.driver()


class Net(torch.nn.Module):
    """Two convolutions, so that one has a gradient of its input, whose kernels are compiled quickly."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Conv2d(8, 16, 3, padding=1)
        self.b = torch.nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(F.relu(self.a(x)))


class Linear(Net):
    """A network without an activation: all that it launches is gpuconv's."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x))


def net(
    dtype: torch.dtype = torch.float16, memory_format: torch.memory_format = LAST, device: str = "cuda",
    kind: type[Net] = Net,
) -> Net:  # fmt: skip
    torch.manual_seed(0)
    model = kind()
    gpuconv.convert(model)
    return model.to(dtype).to(memory_format=memory_format).to(device)


def drawn(
    channels: int, dtype: torch.dtype = torch.float16, memory_format: torch.memory_format = LAST, device: str = "cuda"
) -> torch.Tensor:
    """Random images, of as many channels. Their layout is made on the CPU, and a copy keeps it."""
    generator = torch.Generator().manual_seed(channels)
    values = torch.randn(4, channels, 12, 12, generator=generator, dtype=torch.float64).to(dtype)
    return values.contiguous(memory_format=memory_format).to(device)


@contextmanager
def launched(device: int = 0, at_least: int = 1) -> Iterator[list[stubdriver.Launched]]:
    """Check the launches within the block: there are some, on this device, and nothing was refused."""
    torch.cuda.synchronize()
    driver.stub_clear()
    found: list[stubdriver.Launched] = []
    yield found
    found += stubdriver.launches()
    assert not driver.stub_refusals(), driver.stub_refusal()
    assert len(found) >= at_least, f"{len(found)} launches"
    assert {launch.device for launch in found} <= {device}, {launch.device for launch in found}


def computed(model: torch.nn.Module, x: torch.Tensor, gy: torch.Tensor) -> dict[str, torch.Tensor]:
    """The result, and the gradients of x and of all parameters, on the CPU."""
    x = x.detach().requires_grad_()
    model.zero_grad()
    y = model(x)
    y.backward(gy)
    return {
        "y": y.detach().cpu(), "x": x.grad.cpu(), **{name: p.grad.cpu() for name, p in model.named_parameters()}
    }  # fmt: skip


def equal(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return got.keys() == wanted.keys() and all(torch.equal(got[name], wanted[name]) for name in wanted)


# ---- the parts -------------------------------------------------------------------------------------------------------


@on_host.all_computed()
def a_step_computes(dtype: torch.dtype, memory_format: torch.memory_format, device: str = "cuda") -> None:
    """Every convolution of a step within the oracle's bound, in all three directions; and the next step is planned and
    loaded no more."""
    model = net(dtype, memory_format, device)
    x, gy = (drawn(channels, dtype, memory_format, device) for channels in (8, 16))
    given: dict[str, torch.Tensor] = {}
    results: dict[str, torch.Tensor] = {}
    gradients: dict[str, torch.Tensor] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(_: object, inputs: tuple[torch.Tensor, ...], y: torch.Tensor) -> None:
            given[name], results[name] = inputs[0], y
            inputs[0].register_hook(lambda g: gradients.__setitem__(f"{name} input", g))
            y.register_hook(lambda g: gradients.__setitem__(f"{name} output", g))

        return hook

    for name in ("a", "b"):
        getattr(model, name).register_forward_hook(note(name))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, foreach=False)
    before = [p.detach().cpu().clone() for p in model.parameters()]
    index = x.device.index
    with executor.Executor() as gpu, launched(index, at_least=6) as first:
        model(x.requires_grad_()).backward(gy)
    assert [one.kernel for one in gpu.counters] == [launch.name for launch in first]
    exactly, tf32 = reference.precision_for(dtype), dtype is torch.float32
    for name in ("a", "b"):
        layer = getattr(model, name)
        shapes = given[name].shape, layer.weight.shape
        problem = ConvProblem.of(*shapes, padding=1, dtype=dtype, memory_format=memory_format)
        assert results[name].dtype is dtype and results[name].is_contiguous(memory_format=memory_format)
        x_, w, b, g = map(as_numpy, (given[name], layer.weight, layer.bias, gradients[f"{name} output"]))
        for got, exact in (
            (results[name], reference.forward(problem, x_, w, b, dtype=exactly)),
            (gradients[f"{name} input"], reference.grad_input(problem, g, w, exactly)),
            (layer.weight.grad, reference.grad_weight(problem, g, x_, exactly)),
            (layer.bias.grad, reference.grad_bias(problem, g, exactly)),
        ):
            assert_close_to_oracle(got, exact, f"{name} {dtype} {memory_format} {device}", tf32=tf32)
    optimizer.step()
    for p, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(p.detach().cpu(), old.add(p.grad.cpu(), alpha=-0.5))
    loaded, planned = driver.stub_modules_loaded(), len(plan._plans)
    with launched(index) as second:
        model(x).backward(gy)
    assert [(one.name, one.grid, one.shared) for one in second] == [(one.name, one.grid, one.shared) for one in first]
    assert (driver.stub_modules_loaded(), len(plan._plans)) == (loaded, planned)


def a_run_in_float64_is_pytorchs_own() -> None:
    model, x = net(torch.float64, FIRST), drawn(8, torch.float64, FIRST)
    theirs = Net().double()
    theirs.load_state_dict({name: value.cpu() for name, value in model.state_dict().items()})
    losses = []
    with executor.Executor():
        for trained, images in ((model, x), (theirs, x.cpu())):
            optimizer = torch.optim.SGD(trained.parameters(), lr=0.1, momentum=0.9, foreach=False)
            for _ in range(3):
                optimizer.zero_grad()
                loss = trained(images).pow(2).mean()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
    assert losses[0] > 1.1 * losses[2], losses
    torch.testing.assert_close(losses[:3], losses[3:], rtol=1e-13, atol=0)
    for ours, p in zip(model.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(ours.detach().cpu(), p.detach(), rtol=1e-12, atol=1e-13)


def a_graph_computes_when_it_is_launched() -> None:
    """A captured step computes nothing; its replay does, on what lies in its tensors by then."""
    model, x, gy = net(kind=Linear), drawn(8).requires_grad_(), drawn(16)
    other = x.detach().cpu().flip(0).cuda()
    with executor.Executor() as gpu:
        wanted = computed(model, other, gy)
        model.zero_grad()
        graph, launched = torch.cuda.CUDAGraph(), len(gpu.counters)
        with torch.cuda.graph(graph):
            y = model(x)
            y.backward(gy)
        assert len(gpu.counters) == launched
        x.detach().copy_(other)
        for _ in range(2):
            graph.replay()
        got = {"y": y.detach(), "x": x.grad, **{name: p.grad for name, p in model.named_parameters()}}
        assert equal({name: t.cpu() for name, t in got.items()}, wanted)
        assert len(gpu.counters) == 3 * launched


def threads_and_streams_compute_the_same() -> None:
    model, x, gy = net(), drawn(8), drawn(16)
    found: list[dict[str, torch.Tensor]] = []
    errors: list[str] = []

    def work(model: torch.nn.Module) -> None:
        try:
            stream, done = torch.cuda.Stream(), torch.cuda.Event()
            stream.wait_stream(torch.cuda.default_stream())
            with torch.cuda.stream(stream):
                found.append(computed(model, x, gy))
                done.record()
            done.synchronize()
        except Exception:
            errors.append(traceback.format_exc())

    with executor.Executor():
        wanted = computed(model, x, gy)
        pool = [threading.Thread(target=work, args=(copy.deepcopy(model),)) for _ in range(3)]
        for thread in pool:
            thread.start()
        for thread in pool:
            thread.join()
    assert not errors, errors[0]
    assert len(found) == 3 and all(equal(one, wanted) for one in found)


def every_schedule_computes_the_same() -> None:
    model, x, gy = net(), drawn(8), drawn(16)
    found = []
    for schedule, seed in (("early", 0), ("late", 0), ("random", 1), ("random", 2)):
        with executor.Executor(schedule, seed):
            found.append(computed(model, x, gy))
    assert all(equal(one, found[0]) for one in found[1:])


def compiled_code_computes_the_same() -> None:
    """Inductor's kernels, which are Triton's too, and ours between them."""
    model, x, gy = net(), drawn(8), drawn(16)
    compiled = torch.compile(model, fullgraph=True, options={"triton.autotune_pointwise": False})  # nothing is timed
    with executor.Executor():
        wanted = computed(model, x, gy)
        with launched(at_least=5) as found:
            got = computed(compiled, x, gy)
    ours = {launch.name for launch in found if "gather" in launch.name or "window" in launch.name}
    assert ours and any(launch.name.startswith("triton_") for launch in found), {launch.name for launch in found}
    assert equal({name.removeprefix("_orig_mod."): t for name, t in got.items()}, wanted)


# ---- what goes wrong -------------------------------------------------------------------------------------------------


def what_the_emulator_finds_fails_the_launch() -> None:
    """A tensor whose memory is less than it says, in the forward; and in the backward, in autograd's thread."""
    model, x, gy = net(), drawn(8), drawn(16)
    with executor.Executor():
        y = model(x.requires_grad_())
        gy.untyped_storage().resize_(gy.untyped_storage().nbytes() // 2)
        x.detach().untyped_storage().resize_(x.untyped_storage().nbytes() // 2)
        for call in (lambda: model(x.detach()), lambda: y.backward(gy)):
            try:
                call()
            except RuntimeError as error:
                assert "Triton Error [CUDA]" in str(error) and "bounds: global memory" in str(error), error
                assert re.search(r"at PTX line \d+, \w+\.py:\d+: ", str(error)), error
            else:
                raise AssertionError("memory was read that is nobody's")


def a_kernel_without_ptx_is_an_error() -> None:
    with executor.Executor():
        assert refused.launch(refused.function(refused.cubin(90)), pointer=refused.new("cuMemAlloc_v2", 64)) == 801
    assert b"no PTX is known of the kernel small" in driver.stub_refusal()
    driver.stub_clear()


def ptx_is_loaded_and_computes() -> None:
    out = torch.zeros(1, dtype=torch.int32).cuda()
    with executor.Executor():
        small = refused.function((refused.KERNEL % (90, "")).encode())
        assert refused.launch(small, shared=16, pointer=ctypes.c_void_p(out.data_ptr())) == 0
    assert out.item() == 7


# ---- descriptors that the host makes ---------------------------------------------------------------------------------


@triton.jit
def _product(a, b, c, K, BLOCK: tl.constexpr, DEPTH: tl.constexpr):
    """c = a · b, all of them read and written through descriptors."""
    row, column = tl.program_id(0) * BLOCK, tl.program_id(1) * BLOCK
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for k in range(0, K, DEPTH):
        total = tl.dot(a.load([row, k]), b.load([k, column]), total)
    c.store([row, column], total.to(c.dtype))


def descriptors_of_the_host_compute(dtype: torch.dtype, depth: int) -> None:
    """Sizes that no block divides, and swizzles of 32, 64 and 128 bytes by the depth."""
    generator = torch.Generator().manual_seed(depth)
    a, b = (torch.randn(shape, generator=generator).to(dtype) for shape in ((72, 80), (80, 88)))
    on_gpu = [t.cuda() for t in (a, b, torch.zeros(72, 88, dtype=dtype))]
    made = [
        TensorDescriptor(t, t.shape, t.stride(), block)
        for t, block in zip(on_gpu, ([64, depth], [depth, 64], [64, 64]), strict=True)
    ]
    with executor.Executor():
        _product[(2, 2)](*made, 80, BLOCK=64, DEPTH=depth)
    exact = a.double() @ b.double()
    bound = (a.double().abs() @ b.double().abs()) * 2.0**-20 + exact.abs() * torch.finfo(dtype).eps
    assert ((on_gpu[2].cpu().double() - exact).abs() <= bound).all()


def descriptors_are_those_that_the_emulator_reads() -> None:
    """cuTensorMapEncodeTiled beside `TensorMap`, by the numbers of cuda.h: types as in CUtensorMapDataType."""
    types = ["u8", "u16", "u32", "s32", "u64", "s64", "f16", "f32", "f64", "bf16", "f32.ftz", "tf32", "tf32.ftz"]
    sizes, box, steps = (33, 5, 7, 4, 3), (16, 2, 3, 4, 1), (1, 2, 1, 1, 3)
    memory = torch.empty(1 << 16, dtype=torch.uint8).cuda()
    for number, name in enumerate(types):
        each = emulator.tensor_map.ELEMENT_TYPES[name]
        strides = [320]
        for size in sizes[1:4]:
            strides.append(strides[-1] * size)
        for rank in range(1, 6):
            swizzle = {16: 1, 32: 2}.get(box[0] * each, 3) if rank % 2 and box[0] * each <= 128 else 0
            fill = rank == 4 and number >= 6
            got = (ctypes.c_uint8 * 192)()
            at = ctypes.addressof(got) + -ctypes.addressof(got) % 64
            error = driver.cuTensorMapEncodeTiled(
                ctypes.c_void_p(at), number, rank, ctypes.c_void_p(memory.data_ptr()), (ctypes.c_uint64 * 5)(*sizes),
                (ctypes.c_uint64 * 4)(*strides), (ctypes.c_uint32 * 5)(*box), (ctypes.c_uint32 * 5)(*steps),
                0, swizzle, 0, int(fill),
            )  # fmt: skip
            assert error == 0, driver.stub_refusal()
            wanted = emulator.TensorMap(
                memory.data_ptr(), name, sizes[:rank], tuple(strides[: rank - 1]), box[:rank], steps[:rank],
                swizzle=(0, 32, 64, 128)[swizzle], fill="nan" if fill else "zero",
            )  # fmt: skip
            assert ctypes.string_at(at, 128) == bytes(wanted), (name, rank)


def parts() -> Iterator[tuple[str, Callable[[], None]]]:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        for memory_format in (LAST, FIRST):
            yield (
                f"a step computes in {dtype}, {memory_format}",
                functools.partial(a_step_computes, dtype, memory_format),
            )
    yield "a step computes on an A100", functools.partial(a_step_computes, torch.float16, LAST, "cuda:2")
    for dtype, depth in ((torch.float16, 16), (torch.bfloat16, 32), (torch.float16, 64)):
        yield f"descriptors of {dtype}, {depth}", functools.partial(descriptors_of_the_host_compute, dtype, depth)
    for part in (
        a_run_in_float64_is_pytorchs_own,
        a_graph_computes_when_it_is_launched,
        threads_and_streams_compute_the_same,
        every_schedule_computes_the_same,
        compiled_code_computes_the_same,
        what_the_emulator_finds_fails_the_launch,
        descriptors_are_those_that_the_emulator_reads,
        a_kernel_without_ptx_is_an_error,
        ptx_is_loaded_and_computes,
    ):
        yield part.__name__.replace("_", " "), on_host.all_computed()(part)
