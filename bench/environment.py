"""Where a result was measured, as every record says: device, driver, clocks, versions, commit, date."""

import datetime
import functools
import hashlib
import inspect
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

import gpuconv
from gpuconv import backends, packages

_SMI = ("driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "power.limit")


def environment(device: torch.device) -> dict[str, Any]:
    """The fields that all records of a run share."""
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else _cpu(),
        "on": device.type,
        **_driver(device),
        "cuda": torch.version.cuda if on_gpu else None,
        "cudnn": torch.backends.cudnn.version() if on_gpu else None,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "triton": packages.installed("triton"),
        "cupy": packages.installed("cupy"),
        "gpuconv": gpuconv.__version__,
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"CPU: {name}"


def _driver(device: torch.device) -> dict[str, str | None]:
    """What nvidia-smi says about the device."""
    found: list[str | None] = [None] * len(_SMI)
    smi = shutil.which("nvidia-smi")
    if device.type == "cuda" and smi is not None:
        uuid = str(getattr(torch.cuda.get_device_properties(device), "uuid", ""))
        which = [f"--id=GPU-{uuid}"] if uuid else []
        command = [smi, f"--query-gpu={','.join(_SMI)}", "--format=csv,noheader", *which]
        run = subprocess.run(command, capture_output=True, text=True)
        values = [value.strip() for value in run.stdout.split("\n")[0].split(",")]
        if run.returncode == 0 and len(values) == len(_SMI):
            found = list(values)
    return {name.replace(".", "_").replace("_version", ""): value for name, value in zip(_SMI, found, strict=True)}


def commit() -> str | None:
    """The commit of the checkout that gpuconv runs from, with '+' where files were changed; None for a wheel."""
    git, folder = shutil.which("git"), Path(gpuconv.__file__).parent
    if git is None:
        return None

    def ask(*arguments: str) -> str:
        return subprocess.run([git, "-C", str(folder), *arguments], capture_output=True, text=True).stdout.strip()

    if not ask("ls-files", "__init__.py"):  # in some other repository's folder, or in none
        return None
    return ask("rev-parse", "--short=12", "HEAD") + ("+" if ask("status", "--porcelain") else "")


@functools.cache
def source(backend: str) -> str:
    """A hash, twelve digits, of a backend's code: of gpuconv, its kernels, and the backend's own file."""
    from gpuconv import kernels

    roots = [Path(gpuconv.__file__).parent, *map(Path, kernels.__path__)]
    files = {file for root in roots for end in ("*.py", "*.cu", "*.cuh") for file in root.rglob(end)}
    if backend in backends.names():
        own = inspect.getsourcefile(type(backends.get(backend)))
        files |= {Path(own)} if own else set()
    found = hashlib.sha256()
    for file in sorted(files):
        found.update(file.read_bytes())
    return found.hexdigest()[:12]
