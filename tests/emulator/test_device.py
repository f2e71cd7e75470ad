"""The virtual GPU in place of the CPU: right by the oracle, planned for the GPU that is named, and leaving no trace."""

import dataclasses
import threading
from collections.abc import Iterator

import pytest
import torch
from lanes import EMULATED, INTERPRETING, Lane

import gpuconv
from gpuconv import BackendUnavailable, backends, reference
from gpuconv.activations import IDENTITY, Activation
from gpuconv.backends.base import contiguous_operands
from gpuconv.checking.precision import float32_as
from gpuconv.checking.problems import tensors
from gpuconv.emulator import device as emulator
from gpuconv.emulator.program import EmulationError
from gpuconv.functional import conv2d_act
from gpuconv.gpu import INTERPRETER, KNOWN, Gpu
from gpuconv.planning import distrust, plan, tuned
from gpuconv.planning.distrust import Failed, Kernels
from gpuconv.planning.ranking import candidates, ranked
from gpuconv.problem import ConvProblem
from gpuconv.reference import as_numpy, assert_close_to_oracle
from gpuconv.settings import Settings

CPU = torch.device("cpu")
LAST = torch.channels_last
PROBLEM = ConvProblem.of((2, 16, 9, 7), (24, 16, 3, 3), padding=1)
each_backend = pytest.mark.parametrize("lane", [lane for lane, always in EMULATED.items() if always], ids=str)

pytestmark = [
    pytest.mark.skipif(emulator.why_not() is not None, reason=f"no GPU can be emulated: {emulator.why_not()}"),
    pytest.mark.skipif(INTERPRETING, reason="what is interpreted is not compiled"),
]


@pytest.fixture
def h100() -> Iterator[emulator.VirtualGpu]:
    with Lane("triton", "cpu", "h100").emulated() as gpu:
        yield gpu


def operands(dtype: torch.dtype = torch.float32, layout: str = "contiguous") -> list[torch.Tensor]:
    """input, weight, bias, gradient of the output."""
    found = tensors(PROBLEM, "device", dtype, "cpu", layout)
    return [found[name] for name in ("input", "weight", "bias", "grad_output")]


# ---- it is right -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lane", "dtype", "layout"),
    [
        (Lane("triton", "cpu", "h100"), torch.bfloat16, "channels_last"),
        (Lane("triton", "cpu", "a100"), torch.float32, "contiguous"),
        (Lane("cuda", "cpu", "h100"), torch.float32, "channels_last"),
        (Lane("cuda", "cpu", "a100"), torch.bfloat16, "contiguous"),
        (Lane("cuda", "cpu", "t4"), torch.float16, "channels_last"),
    ],
    ids=str,
)
def test_a_training_step_is_right(lane: Lane, dtype: torch.dtype, layout: str) -> None:
    with lane.entered(), lane.emulated() as gpu:
        x, w, b, gy = operands(dtype, layout)
        leaves = [t.requires_grad_() for t in (x, w, b)]
        y = gpuconv.conv2d(x, w, b, padding=1, backend=lane.backend)
        y.backward(gy)
        tf32 = plan.uses_tf32(x)
        assert len(gpu.launches) == len(gpu.counters()) >= 3
        assert all(counters.facts()["instructions"] > 0 for counters in gpu.counters())
        n = [as_numpy(t.detach()) for t in (x, w, b, gy)]
        assert_close_to_oracle(y.detach(), reference.forward(PROBLEM, *n[:3]), f"{lane} forward", tf32=tf32)
        exact = (
            reference.grad_input(PROBLEM, n[3], n[1]),
            reference.grad_weight(PROBLEM, n[3], n[0]),
            reference.grad_bias(PROBLEM, n[3]),
        )
        for leaf, wanted, what in zip(leaves, exact, ("input", "weight", "bias"), strict=True):
            assert_close_to_oracle(leaf.grad, wanted, f"{lane} gradient of {what}", tf32=tf32)


@each_backend
def test_act_backward_runs_on_it_too(lane: Lane) -> None:
    with lane.emulated() as gpu:
        gy, z = (torch.linspace(a, b, 2 * 5 * 12).view(2, 5, 3, 4) for a, b in ((-1, 2), (-3, 3)))
        key = Settings((1, 1), ((0, 0), (0, 0)), (1, 1), 1, "silu", lane.backend).encode()
        gz, gb = torch.ops.gpuconv.act_backward(gy, z, True, key)
        assert [name.partition("<")[0] for name in gpu.launches] == ["act_backward", "sum_channels"]
    exact_z, exact_b = reference.act_backward(Activation.parse("silu"), as_numpy(gy), as_numpy(z))
    assert_close_to_oracle(gz, exact_z, "gz")
    assert_close_to_oracle(gb, exact_b, "gb")


def test_depthwise_decides_nothing_by_what_was_never_written() -> None:
    """Beside the runs of packed planes, in whose vectors no result belongs to it."""
    problem = ConvProblem.of((2, 3, 7, 5), (3, 1, 3, 3), padding=1, groups=3, dtype=torch.bfloat16)
    t = tensors(problem, "runs", torch.bfloat16)
    x, w, b, residual = (t[name] for name in ("input", "weight", "bias", "residual"))
    with Lane("cuda", "cpu", "a100").entered():
        y = conv2d_act(x, w, b, padding=1, groups=3, activation="gelu", residual=residual, backend="cuda")
    exact = reference.forward(problem, *map(as_numpy, (x, w, b, residual)), Activation.parse("gelu"))
    assert_close_to_oracle(y, exact, "gelu")


@each_backend
@pytest.mark.parametrize("layout", ["offset", "sliced", "transposed", "expanded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_tensors_that_lie_oddly(lane: Lane, layout: str, dtype: torch.dtype) -> None:
    """Bfloat16 lies channels last, as the window kernels want it: what they cannot take, others do."""
    x, w, b, _ = operands(dtype)
    if dtype is torch.bfloat16:
        x, w = (t.contiguous(memory_format=LAST) for t in (x, w))
    if layout == "offset":  # one element beyond a multiple of 16 bytes
        x, w = (torch.cat((t.new_zeros(1), t.permute(0, 2, 3, 1).flatten())) for t in (x, w))
        x, w = (t[1:].view(s).permute(0, 3, 1, 2) for t, s in ((x, (2, 9, 7, 16)), (w, (24, 3, 3, 16))))
        assert x.data_ptr() % 16
    elif layout == "expanded":
        x, b = x[:1].expand(2, -1, -1, -1), b[:1].expand(24)
    else:
        x = x[..., ::2] if layout == "sliced" else x.transpose(2, 3)
    problem = ConvProblem.of(x.shape, w.shape, padding=1, dtype=dtype)
    with lane.emulated() as gpu:
        y = gpuconv.conv2d(x, w, b, padding=1, backend=lane.backend)
        tf32 = plan.uses_tf32(x)
    assert gpu.launches
    assert_close_to_oracle(y, reference.forward(problem, *map(as_numpy, (x, w, b))), f"{lane} {layout}", tf32=tf32)


@each_backend
def test_an_empty_batch_launches_nothing(lane: Lane) -> None:
    with lane.emulated() as gpu:
        x, w = torch.empty(0, 16, 9, 7), torch.empty(24, 16, 3, 3)
        assert gpuconv.conv2d(x, w, padding=1, backend=lane.backend).shape == (0, 24, 9, 7)
        assert not gpu.launches


@each_backend
def test_float32_is_multiplied_as_pytorch_is_set(lane: Lane) -> None:
    x, w, b, _ = operands()
    exact = reference.forward(PROBLEM, *map(as_numpy, (x, w, b)))
    got = {}
    with lane.emulated():
        for numbers in ("float32", "tf32"):
            with float32_as(numbers):
                got[numbers] = gpuconv.conv2d(x, w, b, padding=1, backend=lane.backend)
    assert_close_to_oracle(got["float32"], exact, "IEEE")
    assert_close_to_oracle(got["tf32"], exact, "tf32", tf32=True)
    error = reference.worst_violation(got["tf32"], exact)[0]
    assert error > 1, f"{error:.3g} of the bound of IEEE: it was not multiplied as TF32"


@each_backend
def test_every_schedule_gives_the_same_bits(lane: Lane) -> None:
    x, w, b, _ = operands(torch.bfloat16, "channels_last")
    found = []
    for how in ({"schedule": "early"}, {"schedule": "late"}, {"schedule": "random", "seed": 5}, {"checks": False}):
        with lane.emulated(**how):
            found.append(gpuconv.conv2d(x, w, b, padding=1, backend=lane.backend))
    assert all(torch.equal(found[0], other) for other in found[1:])


@each_backend
def test_a_fault_names_the_kernel_and_the_line_of_its_source(lane: Lane) -> None:
    """A launch that is told of a larger input than it is given."""
    operands_ = contiguous_operands(PROBLEM, "forward")
    with lane.emulated():
        ours = backends.get(lane.backend)
        tile, _ = ranked(
            ours, ours.tiles(PROBLEM, "forward", Gpu.of(CPU), operands_), PROBLEM, "forward", Gpu.of(CPU), False
        )[0]
        run = ours.bind(PROBLEM, "forward", CPU, IDENTITY, operands_, tile)
        x, w, _, _ = operands()
        with pytest.raises(EmulationError) as caught:
            run(x[:1], w, None, None)
    assert caught.value.kind == "bounds"
    file, _, line = str(caught.value.source).rpartition(":")
    assert file.endswith(".py" if lane.backend == "triton" else (".cu", ".cuh")) and int(line) > 0
    assert str(caught.value.source) in str(caught.value)


# ---- for that GPU, and for no other ----------------------------------------------------------------------------------


def test_it_plans_as_for_that_gpu() -> None:
    pytest.importorskip("cupy_backends.cuda.libs.nvrtc", reason="CuPy, whose NVRTC compiles CUDA C, is not installed")
    problem = ConvProblem.of((8, 64, 28, 28), (64, 64, 3, 3), padding=1, dtype=torch.bfloat16, memory_format=LAST)
    settings, asked = Settings((1, 1), problem.padding, (1, 1), 1), contiguous_operands(problem, "forward", LAST)
    for name in ("h100", "a100", "t4"):
        with emulator.on(name):
            gpu = KNOWN[name.upper()]
            assert Gpu.of(CPU) is gpu
            assert plan.device_name(CPU) == f"{gpu.name} (emulated)"
            chosen = plan.choose(problem, "forward", CPU, settings, asked)
            best = candidates(problem, "forward", gpu, asked)[0][0]
            assert (chosen.backend.name, chosen.tile) == best[:2]
    with emulator.on("t4"), pytest.raises(BackendUnavailable, match=r"on T4 \(emulated\) .*sm_75"):
        plan.choose(problem, "forward", CPU, settings._replace(backend="triton"), asked)


def test_leaving_it_leaves_no_trace(h100: emulator.VirtualGpu) -> None:
    """Also after an error, and with nested contexts."""
    x, w, b, _ = operands()
    inner = []

    def state() -> tuple[object, ...]:
        order, name = backends.auto_order("cpu"), plan.device_name(CPU)
        return order, name, Gpu.of(CPU), plan.uses_tf32(x), list(plan._plans.values()), distrust._dropped

    gpuconv.conv2d(x, w, b, padding=1, backend="triton")
    before = state()
    with pytest.raises(ZeroDivisionError), emulator.on("a100") as gpu:
        assert Gpu.of(CPU) is KNOWN["A100"] and not plan._plans
        gpuconv.conv2d(x, w, b, padding=1, backend="triton")
        inner += gpu.launches
        raise ZeroDivisionError
    assert inner and state() == before
    launched = len(h100.launches)
    gpuconv.conv2d(x, w, b, padding=1, backend="triton")
    assert state() == before and len(h100.launches) == 2 * launched and len(gpu.launches) == len(inner)


def test_without_it_the_cpu_is_what_it_was() -> None:
    x, w, b, _ = operands()
    expected = torch.conv2d(x, w, b, padding=1)
    numpy = gpuconv.conv2d(x, w, b, padding=1, backend="numpy")
    with emulator.on("a100") as gpu:
        assert torch.equal(gpuconv.conv2d(x, w, b, padding=1, backend="aten"), expected)
        assert torch.equal(gpuconv.conv2d(x, w, b, padding=1, backend="numpy"), numpy)
        assert not gpu.launches
        automatic = gpuconv.conv2d(x, w, b, padding=1)
        assert gpu.launches and not torch.equal(automatic, expected)
    assert torch.equal(gpuconv.conv2d(x, w, b, padding=1), expected)
    assert backends.auto_order("cpu") == ("aten",) and Gpu.of(CPU) is INTERPRETER
    assert "the tensors are on cpu" in (backends.get("triton").refuses(PROBLEM, "forward", CPU) or "")


def test_what_is_registered_meanwhile_is_planned_with_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(type(backends.get("numpy"))):
        name = "mine"

    monkeypatch.setattr(backends, "_loaded", dict(backends._loaded))
    x, w, _, _ = operands()
    gpuconv.conv2d(x, w, backend="numpy")
    assert plan._plans
    with emulator.on("a100"):
        backends.register(Mine())
    assert not plan._plans


@pytest.mark.usefixtures("cache")
def test_what_is_recorded_of_a_real_gpu_is_not_of_an_emulated_one() -> None:
    """Nor the other way round, although their names are alike."""
    kernels = Kernels("triton", "gather", "forward", "float32")
    for one, other in (("H100", "H100 (emulated)"), ("H100 (emulated)", "NVIDIA H100 PCIe")):
        distrust.record(one, {kernels: Failed(one, kernels, "today", "problem", "wrong", distrust.software())})
        assert distrust.failed(one) and not distrust.failed(other)
        distrust.record(one, {kernels: None})
    with emulator.on("h100"):
        key = tuned.key_of(PROBLEM, "forward", plan.device_name(CPU), contiguous_operands(PROBLEM, "forward"))
    assert key and key.startswith("H100 (emulated) ")


def test_it_holds_on_every_thread(h100: emulator.VirtualGpu) -> None:
    x, w, b, gy = (t.requires_grad_() for t in operands(torch.bfloat16, "channels_last"))
    found: list[torch.Tensor] = []

    def step() -> None:
        y = gpuconv.conv2d(x, w, b, padding=1, backend="triton")
        found.extend([y, *torch.autograd.grad(y, (x, w, b), gy)])

    threads = [threading.Thread(target=step) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 12 and len(h100.launches) == len(h100.counters()) == 9
    for one in found[4:]:
        assert any(torch.equal(one, other) for other in found[:4])


def test_compiled_code_follows_it() -> None:
    x, w, _, _ = operands()
    compiled = torch.compile(lambda x, w: gpuconv.conv2d(x, w, padding=1), fullgraph=True, backend="eager")
    outside = compiled(x, w)
    with emulator.on("a100") as gpu:
        inside = compiled(x, w)
        assert gpu.launches
    assert torch.equal(compiled(x, w), outside) and not torch.equal(inside, outside)


@each_backend
def test_a_tile_that_the_gpu_has_no_memory_for_is_passed_over(lane: Lane) -> None:
    """A real GPU would refuse the launch."""
    small = dataclasses.replace(KNOWN["A100"], shared_memory=4 << 10)
    problem = ConvProblem.of((2, 64, 16, 16), (64, 64, 3, 3), padding=1, dtype=torch.float16, memory_format=LAST)
    asked = contiguous_operands(problem, "forward", LAST)
    with emulator.on("a100"):
        ours = backends.get(lane.backend)
        tile, _ = ranked(
            ours, ours.tiles(problem, "forward", Gpu.of(CPU), asked), problem, "forward", Gpu.of(CPU), False
        )[0]
    world = plan.emulate(emulator.VirtualGpu(small))
    try:
        run = ours.bind(problem, "forward", CPU, IDENTITY, asked, tile)
        x, w = (
            torch.zeros(shape, dtype=torch.float16).to(memory_format=LAST)
            for shape in problem.operand_shapes("forward")
        )
        with pytest.raises(Exception, match="shared memory") as caught:
            run(x, w, None, None)
        assert ours.cannot_build(caught.value)
    finally:
        plan.leave(world)


# ---- how it is asked for ---------------------------------------------------------------------------------------------


def test_what_is_wrong_with_the_arguments_is_said() -> None:
    before = list(plan._worlds)
    for arguments, error, message in (
        (("h200",), ValueError, "name must be one of T4, A100, .*but got 'h200'"),
        ((90,), TypeError, "name must be a str, but got int"),
        (("h100", "eager"), ValueError, "schedule must be one of early, late, random, but got 'eager'"),
    ):
        with pytest.raises(error, match=message), emulator.on(*arguments):
            pass
    assert plan._worlds == before
