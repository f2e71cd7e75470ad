"""What users do, on GPUs that are none: autocast, warmup, graphs, threads, a second GPU; and training steps (`steps`).

Run by tests/stubdriver/test_gpus.py in a process of its own (`stubdriver.environment(…, "90,90,80", runtime=True)`),
with GPUCONV_BACKEND=triton, which threads see too. Prints for each part a line of JSON: its name, and what was wrong.
In the parts of this file no launch is executed, so no value means anything; those of `steps` compute.
"""

import json
import threading
import traceback
from collections.abc import Callable, Iterator

import on_host
import steps
import torch
import triton
from steps import LAST, driver, launched, net

import gpuconv
from gpuconv.checking import installation
from gpuconv.gpu import Gpu
from gpuconv.planning import plan


def batch(
    dtype: torch.dtype = torch.float16, memory_format: torch.memory_format = LAST, device: str = "cuda"
) -> torch.Tensor:
    return torch.zeros(4, 8, 12, 12, dtype=dtype, device=device).contiguous(memory_format=memory_format)


def loss(y: torch.Tensor) -> torch.Tensor:
    return y.float().square().mean()


def step(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    y = model(x)
    loss(y).backward()
    return y


# ---- the parts -------------------------------------------------------------------------------------------------------


def doctor_finds_the_gpus() -> None:
    report = installation.report()
    assert [gpu["capability"] for gpu in report["gpus"]] == ["9.0", "9.0", "8.0"]
    assert report["backends"]["triton"] == {"usable": True, "reason": None}
    assert report["auto"]["cuda"]["picks"] == "triton"
    assert "H100" in installation.text(report)
    assert Gpu.of(torch.device("cuda", 0)).shared_memory == 227 << 10
    assert Gpu.of(torch.device("cuda", 2)).shared_memory == 163 << 10


def autocast_trains_in_bfloat16() -> None:
    model, x = net(torch.float32), batch(torch.float32)
    with launched(at_least=5), torch.autocast("cuda", torch.bfloat16):
        y = step(model, x)
    assert y.dtype is torch.bfloat16 and model.a.weight.grad.dtype is torch.float32


def after_warmup_nothing_is_loaded() -> None:
    model, x = net(), batch()[:3]
    gpuconv.warmup(model, x, loss=loss)
    loaded, planned = driver.stub_modules_loaded(), len(plan._plans)
    with launched():
        step(model, x)
    assert (driver.stub_modules_loaded(), len(plan._plans)) == (loaded, planned)


def a_graph_is_captured_after_warmup() -> None:
    model, x = net(), batch()
    gpuconv.warmup(model, x, loss=loss)
    graph = torch.cuda.CUDAGraph()
    with launched(at_least=5) as inside, torch.cuda.graph(graph):
        stream = torch.cuda.current_stream().cuda_stream
        step(model, x)
    assert {launch.stream for launch in inside} == {stream}
    graph.replay()


def graphed_callables_train() -> None:
    with launched(at_least=5):
        graphed = torch.cuda.make_graphed_callables(net(), (batch(),))
        step(graphed, batch())


def a_first_call_within_a_capture_says_what_to_do() -> None:
    layer = gpuconv.nn.Conv2d(8, 24, 5).cuda().half().to(memory_format=LAST)
    try:
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            layer(batch())
    except RuntimeError as error:
        assert "gpuconv.warmup" in str(error) and "captur" in str(error), error
    else:
        raise AssertionError("a module was loaded during a capture")
    with launched():
        layer(batch())
    with launched(), torch.cuda.graph(torch.cuda.CUDAGraph()):
        layer(batch())


def threads_call_at_once() -> None:
    model, x = net(), batch()
    step(model, x)
    errors: list[str] = []

    def work() -> None:
        try:
            for _ in range(5):
                step(model, batch())
        except Exception:
            errors.append(traceback.format_exc())

    with launched(at_least=6 * 5 * 5) as found:
        pool = [threading.Thread(target=work) for _ in range(6)]
        for thread in pool:
            thread.start()
        for thread in pool:
            thread.join()
    assert not errors, errors[0]
    assert len({launch.thread for launch in found}) >= 7, "threads of autograd and of the caller"


def a_thread_without_a_context_calls_descriptors_too() -> None:
    """The first thing that a thread does with the GPU is a launch, of a kernel that is given descriptors, or of one
    that also makes some and needs scratch: where the stride divides no side of the images."""
    layer = (
        gpuconv.nn.Conv2d(512, 64, 3, padding=1, stride=2).cuda().half().to(memory_format=LAST).requires_grad_(False)
    )
    for side, scratch in ((8, False), (9, True)):
        first, second = (
            torch.zeros(1, 512, side, side, dtype=torch.half, device="cuda").contiguous(memory_format=LAST)
            for _ in range(2)
        )
        with launched() as found:
            layer(first)
        assert {launch.name for launch in found} & {"window_forward"}, found
        errors: list[str] = []

        def work(layer: torch.nn.Module = layer, x: torch.Tensor = second, errors: list[str] = errors) -> None:
            try:
                layer(x)
            except Exception:
                errors.append(traceback.format_exc())

        with launched() as found:
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
        assert not errors, errors[0]
        assert found[0].name == "window_forward" and 128 in found[0].sizes, "it is given a descriptor"
        assert bool(found[0].values[-2]) == scratch


def other_gpus_compute_theirs() -> None:
    for device in (1, 2, 0, 1, 2):
        name = f"cuda:{device}"
        model, x = net(device=name), batch(device=name)
        with launched(device, at_least=5):
            step(model, x)
        assert torch.cuda.current_device() == 0


def the_current_stream_is_used() -> None:
    model, x = net(), batch()
    step(model, x)
    side = torch.cuda.Stream()
    with launched() as found, torch.cuda.stream(side):
        step(model, x)
    assert {launch.stream for launch in found} == {side.cuda_stream}


def tensors_that_are_not_aligned_are_computed() -> None:
    model, x = net(), batch()
    step(model, x)
    shifted = torch.empty(x.numel() + 1, dtype=x.dtype, device="cuda")[1:].as_strided(x.shape, x.stride())
    assert shifted.data_ptr() % 16
    with launched(at_least=5) as found:
        step(model, shifted)
    assert any(shifted.data_ptr() in launch.values for launch in found)
    with launched(at_least=5) as found:
        step(model, x)
    assert not any(shifted.data_ptr() in launch.values for launch in found)


def an_empty_batch_has_gradients() -> None:
    model = net()
    with launched():  # of grad_weight, which is zero and has to be written
        step(model, batch()[:0])
    assert model.a.weight.grad.shape == model.a.weight.shape


def a_profiler_sees_every_launch() -> None:
    model, x = net(), batch()
    step(model, x)
    seen: list[str] = []

    def hook(metadata: object) -> None:
        seen.append(metadata.get()["name"])

    triton.knobs.runtime.launch_enter_hook.add(hook)
    try:
        with launched() as found:
            step(model, x)
    finally:
        triton.knobs.runtime.launch_enter_hook.remove(hook)
    assert sorted(seen) == sorted(launch.name for launch in found), seen


def parts() -> Iterator[tuple[str, Callable[[], None]]]:
    yield "doctor finds the gpus", doctor_finds_the_gpus
    for part in (
        autocast_trains_in_bfloat16,
        after_warmup_nothing_is_loaded,
        a_graph_is_captured_after_warmup,
        graphed_callables_train,
        a_first_call_within_a_capture_says_what_to_do,
        threads_call_at_once,
        a_thread_without_a_context_calls_descriptors_too,
        other_gpus_compute_theirs,
        the_current_stream_is_used,
        tensors_that_are_not_aligned_are_computed,
        an_empty_batch_has_gradients,
        a_profiler_sees_every_launch,
    ):
        yield part.__name__.replace("_", " "), part
    yield from steps.parts()


def main() -> None:
    on_host.install()
    torch.set_deterministic_debug_mode("warn")  # fills new tensors with NaN, so that what is not written is not right
    for name, part in parts():
        try:
            part()
        except Exception:
            print(json.dumps([name, traceback.format_exc()]))
        else:
            print(json.dumps([name, None]))


if __name__ == "__main__":
    main()
