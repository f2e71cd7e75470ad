"""What `gpuconv doctor` reports: versions, GPUs, which backends can run here, and what `auto` picks."""

import os
import platform
from typing import Any

import torch

import gpuconv
from gpuconv import backends, packages
from gpuconv.emulator.build import why_not
from gpuconv.emulator.device import VARIABLE
from gpuconv.planning import distrust, plan

# wgmma reads what cp.async copied without fence.proxy.async, which PTX requires.
_OLD_TRITON = (
    "advice: Triton before 3.8 leaves out a fence between copies and products on compute capability 9.0: results may\n"
    "be wrong now and then. PyTorch 2.14 brings Triton 3.8. gpuconv doctor --self-test tries every family of kernels."
)


def report() -> dict[str, Any]:
    """The whole report as plain values, for JSON. What is missing or broken here is part of it and raises nothing."""
    gpus, trouble = _gpus()
    usable = {name: _unavailable(name) for name in backends.names()}
    selected = backends.selected()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "gpuconv": gpuconv.__version__,
        **{package: packages.installed(package) for package in packages.PACKAGES},
        "missing": packages.missing(packages.TRAIN),
        "torch_cuda": torch.version.cuda,
        "gpus": gpus,
        "gpu_trouble": trouble,
        "driver": packages.driver(),
        "backends": {name: {"usable": reason is None, "reason": reason} for name, reason in usable.items()},
        "failed": [
            {"device": name, **found.kernels._asdict(), "reason": found.reason}
            for name in dict.fromkeys([*(gpu["name"] for gpu in gpus), "cpu", *filter(None, [_emulated()["on"]])])
            for found in distrust.failed(name).values()
        ],
        "auto": {
            device: {
                "order": list(backends.auto_order(device)),
                "picks": next((name for name in backends.auto_order(device) if usable.get(name) is None), None),
            }
            for device in ("cpu", "cuda")
        },
        "emulator": {"usable": why_not() is None, "reason": why_not(), **_emulated()},
        "selected": selected,
        "selected_by": "GPUCONV_BACKEND" if os.environ.get("GPUCONV_BACKEND") else "default",
        "selected_trouble": None if selected in (*backends.CHOICES, *usable) else _unknown(selected),
    }


def text(found: dict[str, Any]) -> str:
    """The report as text."""
    lines = [
        f"python    {found['python']} on {found['platform']}",
        f"gpuconv   {found['gpuconv']}",
        f"numpy     {found['numpy']}",
        f"torch     {found['torch']} (" + (f"CUDA {found['torch_cuda']})" if found["torch_cuda"] else "without CUDA)"),
        f"triton    {found['triton'] or 'not installed'}",
        f"cupy      {found['cupy'] or 'not installed'}",
        *([f"missing   {packages.install('train', found['missing'])}"] if found["missing"] else []),
        "",
        "GPUs",
    ]
    for gpu in found["gpus"]:
        lines.append(
            f"  cuda:{gpu['index']}  {gpu['name']}, compute capability {gpu['capability']}, "
            f"{gpu['memory_bytes'] / 2**30:.1f} GiB, {gpu['multiprocessors']} multiprocessors"
        )
    if not found["gpus"]:
        lines.append(f"  none: {found['gpu_trouble']}")
    lines += ["", "backends"]
    for name, state in found["backends"].items():
        lines.append(f"  {name:8}" + ("usable" if state["usable"] else f"not here: {state['reason']}"))
    emulated = found["emulator"]
    lines += ["", "emulator of GPUs on the CPU"]
    lines.append("  usable" if emulated["usable"] else f"  not here: {emulated['reason']}")
    if emulated["on"]:
        lines.append(f"  CPU tensors stand for those of: {emulated['on']} ({VARIABLE})")
    if emulated["trouble"] and emulated["usable"]:
        lines.append(f"  {emulated['trouble']}")
    old = found["triton"] and tuple(map(int, found["triton"].split(".")[:2])) < (3, 8)
    if old and any(gpu["capability"].startswith("9.") for gpu in found["gpus"]):
        lines += ["", _OLD_TRITON]
    if found["failed"]:
        lines += ["", "not used, since they failed the self-test (gpuconv doctor --self-test tries them again)"]
    for one in found["failed"]:
        kernels = distrust.Kernels(**{name: one[name] for name in distrust.Kernels._fields})
        lines.append(f"  {kernels} on {one['device']}: {one['reason']}")
    lines += ["", "backend 'auto' takes"]
    for device, choice in found["auto"].items():
        own = " or ".join(name for name in choice["order"] if name != "aten")
        fastest = f"the kernel of {own} that is measured or predicted to be fastest; aten where there is none"
        alone = " (here aten alone)" if own and choice["picks"] == "aten" else ""
        lines.append(f"  {device:8}{fastest if own else 'aten'}{alone}")
    if found["selected_by"] == "GPUCONV_BACKEND":
        lines += ["", f"GPUCONV_BACKEND selects {found['selected']!r}"]
    if found["selected_trouble"]:
        lines.append(f"  which does not work: {found['selected_trouble']}")
    return "\n".join(lines)


def _unavailable(name: str) -> str | None:
    """Why the backend cannot run here, or None. An error while finding out is a reason too."""
    try:
        return backends.get(name).unavailable()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _emulated() -> dict[str, str | None]:
    """The name of the GPU that the CPU stands for, if it does, and what is wrong with that."""
    cpu = torch.device("cpu")
    if not plan.emulated(cpu):
        return {"on": None, "trouble": None}
    try:
        return {"on": plan.device_name(cpu), "trouble": None}
    except RuntimeError as error:
        return {"on": None, "trouble": str(error)}


def _unknown(name: str) -> str:
    """Why `name` selects no backend."""
    try:
        backends.get(name)
    except ValueError as error:
        return str(error)
    return f"{name!r} is not a backend"


def _gpus() -> tuple[list[dict[str, Any]], str | None]:
    """The GPUs that PyTorch finds, and why there are none."""
    if torch.version.cuda is None:
        return [], "this PyTorch was built without CUDA"
    try:
        if not torch.cuda.is_available():
            return [], "PyTorch finds no usable NVIDIA GPU and driver"
        found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    except RuntimeError as error:
        return [], str(error).splitlines()[0]
    return [
        {
            "index": index,
            "name": gpu.name,
            "capability": f"{gpu.major}.{gpu.minor}",
            "memory_bytes": gpu.total_memory,
            "multiprocessors": gpu.multi_processor_count,
        }
        for index, gpu in enumerate(found)
    ], None
