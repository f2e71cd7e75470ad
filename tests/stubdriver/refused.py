"""What a driver refuses, the stub refuses: a small kernel is loaded and launched in every way that is wrong.

Run by tests/stubdriver/test_driver.py in a process of its own (`stubdriver.environment(…, "90,80", runtime=False)`);
needs no PyTorch. Prints for each wrong way what came of it, in JSON: the error's number, and the stub's words.
"""

import ctypes
import json
import subprocess
import tempfile
import threading
from pathlib import Path

import stubdriver

KERNEL = """
.version 8.0
.target sm_%d
.address_size 64
.extern .shared .align 16 .b8 dynamic[];
.visible .entry small(.param .u64 p, .param .u32 n) %s {
    .reg .b32 %%a;
    .reg .b64 %%p;
    ld.param.u64 %%p, [p];
    ld.param.u32 %%a, [n];
    st.shared.u32 [dynamic], %%a;
    st.global.u32 [%%p], %%a;
    ret;
}
"""
MOST_BLOCKS = (2**31 - 1, 65535, 65535)
LARGE = 100_000  # bytes of shared memory: more than is given without asking
driver = stubdriver.driver()


def cubin(architecture: int, block: str = "") -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        text, made = Path(folder, "small.ptx"), Path(folder, "small.cubin")
        text.write_text(KERNEL % (architecture, block))
        ptxas = stubdriver.package("triton") / "backends/nvidia/bin/ptxas"
        subprocess.run([ptxas, f"-arch=sm_{architecture}", "-o", made, text], check=True)
        return made.read_bytes()


def new(make: str, *arguments: object) -> ctypes.c_void_p:
    """The handle that a function of the driver makes."""
    handle = ctypes.c_void_p()
    assert getattr(driver, make)(ctypes.byref(handle), *arguments) == 0, driver.stub_refusal()
    return handle


def function(code: bytes) -> ctypes.c_void_p:
    return new("cuModuleGetFunction", new("cuModuleLoadData", code), b"small")


def launch(
    function: object, grid: tuple[int, ...] = (1, 1, 1), block: tuple[int, ...] = (32, 1, 1), shared: int = 0,
    stream: object = None, pointer: object = None,
) -> int:  # fmt: skip
    values = ctypes.c_void_p(getattr(pointer, "value", None)), ctypes.c_uint32(7)
    parameters = (ctypes.c_void_p * 2)(*map(ctypes.addressof, values))
    return driver.cuLaunchKernel(function, *map(ctypes.c_uint, (*grid, *block, shared)), stream, parameters, None)


def descriptor(
    memory: ctypes.c_void_p, offset: int = 0, box: tuple[int, int] = (32, 8), stride: int = 128, swizzle: int = 3,
    element_stride: int = 1,
) -> int:  # fmt: skip
    """A tensor map of a matrix of 64 columns and 16 rows of float32 (7)."""
    got = (ctypes.c_uint8 * 192)()
    at = ctypes.addressof(got) + -ctypes.addressof(got) % 64
    return driver.cuTensorMapEncodeTiled(
        ctypes.c_void_p(at), 7, 2, ctypes.c_void_p(memory.value + offset), (ctypes.c_uint64 * 2)(64, 16),
        (ctypes.c_uint64 * 1)(stride), (ctypes.c_uint32 * 2)(*box), (ctypes.c_uint32 * 2)(element_stride, 1),
        0, swizzle, 0, 0,
    )  # fmt: skip


def report(what: str, error: int) -> None:
    print(json.dumps([what, error, driver.stub_refusal().decode()]))
    driver.stub_clear()


def elsewhere(call: object) -> int:
    """The outcome of the call in a thread of its own."""
    results: list[int] = []
    thread = threading.Thread(target=lambda: results.append(call()))  # type: ignore[operator]
    thread.start()
    thread.join()
    return results[0]


def main() -> None:
    hopper, ampere = cubin(90), cubin(80)
    first, second = (new("cuDevicePrimaryCtxRetain", device) for device in (0, 1))
    out, module = ctypes.c_void_p(), ctypes.c_void_p()

    report("load without a context", driver.cuModuleLoadData(ctypes.byref(module), hopper))
    driver.cuCtxSetCurrent(second)
    there, there_stream = function(ampere), new("cuStreamCreate", 0)
    there_memory = new("cuMemAlloc_v2", ctypes.c_size_t(64))
    driver.cuCtxSetCurrent(first)
    loaded = new("cuModuleLoadData", hopper)
    small = new("cuModuleGetFunction", loaded, b"small")
    memory, stream = new("cuMemAlloc_v2", ctypes.c_size_t(64)), new("cuStreamCreate", 0)
    report("nothing wrong", launch(small, MOST_BLOCKS, shared=48 << 10, stream=stream, pointer=memory))
    report("launch in a thread without a context", elsewhere(lambda: launch(small)))
    driver.cuCtxSetCurrent(second)
    report("launch on another device", launch(small))
    driver.cuCtxSetCurrent(first)
    report("launch of another device's kernel", launch(there))
    report("a stream of another device", launch(small, stream=there_stream))
    report("memory of another device", launch(small, pointer=there_memory))
    report("no block", launch(small, (0, 1, 1)))
    report("too many blocks", launch(small, (2**31, 1, 1)))
    report("too many rows of blocks", launch(small, (1, 65536, 1)))
    report("too many threads", launch(small, block=(1025, 1, 1)))
    report("not the block that it was compiled for", launch(function(cubin(90, ".reqntid 128")), block=(64, 1, 1)))
    report("the block that it was compiled for", launch(function(cubin(90, ".reqntid 128")), block=(128, 1, 1)))
    report("more than the largest block", launch(function(cubin(90, ".maxntid 128")), block=(160, 1, 1)))
    registers = hopper.index(b"\x04\x2f\x08\x00") + 8  # the number of its registers, in .nv.info
    greedy = hopper[:registers] + b"\xff" + hopper[registers + 1 :]
    report("too many registers", launch(function(greedy), block=(512, 1, 1)))
    report("shared memory without asking", launch(small, shared=LARGE))
    report("asking for too much", driver.cuFuncSetAttribute(small, 8, (227 << 10) + 1))
    report("asking", driver.cuFuncSetAttribute(small, 8, LARGE))
    report("shared memory that was asked for", launch(small, shared=LARGE))
    report("shared memory beyond", launch(small, shared=LARGE + 1))
    driver.cuFuncSetAttribute(new("cuModuleGetFunction", loaded, b"small"), 8, LARGE // 2)
    report("shared memory that another user of the function gave back", launch(small, shared=LARGE))
    report("no such kernel", driver.cuModuleGetFunction(ctypes.byref(out), loaded, b"large"))
    report("no cubin", driver.cuModuleLoadData(ctypes.byref(module), KERNEL.encode()))
    report("a cubin for another GPU", driver.cuModuleLoadData(ctypes.byref(module), ampere))
    report("memory of the host", driver.cuPointerGetAttribute(ctypes.byref(out), 3, ctypes.c_void_p(id(out))))
    report("a descriptor", descriptor(memory))
    report("a descriptor of memory that is not aligned", descriptor(memory, offset=8))
    report("a descriptor of rows that are not aligned", descriptor(memory, stride=136))
    report("a descriptor with a box that is too large", descriptor(memory, box=(32, 257)))
    report("a descriptor with a box of no whole 16 bytes", descriptor(memory, box=(3, 8), swizzle=0))
    report("a descriptor with a box beyond its swizzle", descriptor(memory, swizzle=2))
    report("a descriptor of every ninth element", descriptor(memory, element_stride=9))
    driver.cuStreamBeginCapture_v2(stream, 0)
    report("load during a capture", driver.cuModuleLoadData(ctypes.byref(module), hopper))
    report("memory during a capture", driver.cuMemAlloc_v2(ctypes.byref(out), ctypes.c_size_t(64)))
    report("launch during a capture", launch(small, stream=stream))
    relaxed = ctypes.c_int(2)
    driver.cuThreadExchangeStreamCaptureMode(ctypes.byref(relaxed))
    report("load during a capture, relaxed", driver.cuModuleLoadData(ctypes.byref(module), hopper))
    driver.cuThreadExchangeStreamCaptureMode(ctypes.byref(relaxed))
    driver.cuStreamEndCapture(stream, ctypes.byref(out))
    report("load after a capture", driver.cuModuleLoadData(ctypes.byref(module), hopper))
    driver.cuModuleUnload(loaded)
    report("a kernel whose module is gone", launch(small))


if __name__ == "__main__":
    main()
