"""Records facts about the kernels' machine code, so that none gets worse unnoticed.

`python -m gpuconv.bench.machine_code` renews bench/machine_code.json, which holds what some kernels compiled to, and
with which compilers. A test compiles them again and fails where `regressions` finds something: more registers (by a
twentieth), spills, more shared memory, fewer tensor-core instructions or more shared-memory traffic in the main loop.
Needs no GPU.
"""

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import torch

from gpuconv.bench import suites
from gpuconv.gpu import REPRESENTATIVE
from gpuconv.inspection.kernels import BACKENDS, inspect_kernels
from gpuconv.problem import DIRECTIONS

FILE = Path(__file__).with_name("machine_code.json")
LAYER, ARCHITECTURES = "resnet50.conv4_3x3", ("sm_80", "sm_90", "sm_120")
_SLACK = 1.05  # of registers: compilers shuffle a few
_TENSOR_CORE = ("HMMA", "HGMMA", "UTCHMMA")
_THROUGH_SHARED_MEMORY = ("LDS", "STS", "LDSM")


def versions() -> dict[str, str]:
    """The compilers: Triton, and the NVRTC that PyTorch brings."""
    packages = {name.lower(): dist.version for dist in importlib.metadata.distributions() if (name := dist.name)}
    nvrtc = [f"{name} {version}" for name, version in sorted(packages.items()) if name.startswith("nvidia-cuda-nvrtc")]
    return {"triton": packages.get("triton", "none"), "nvrtc": ", ".join(nvrtc) or "none"}


def facts(architecture: str) -> dict[str, dict[str, Any]]:
    """What the kernels that are planned for `LAYER` compile to, by 'backend direction kernel architecture'."""
    problem = suites.layer(LAYER, dtype=torch.bfloat16, memory_format=torch.channels_last)
    found = {}
    for backend in BACKENDS:
        for direction in DIRECTIONS:
            for kernel in inspect_kernels(problem, direction, backend, REPRESENTATIVE[architecture]):
                loop = kernel.code.loop_instructions
                found[f"{backend} {direction} {kernel.name} {architecture}"] = {
                    "registers": kernel.code.registers,
                    "spill_bytes": kernel.code.stack,
                    "shared_bytes": kernel.code.shared,
                    "loop": {name: loop[name] for name in (*_TENSOR_CORE, *_THROUGH_SHARED_MEMORY) if loop[name]},
                }
    return found


def regressions(old: dict[str, dict[str, Any]], new: dict[str, dict[str, Any]]) -> list[str]:
    """A line for each fact that is worse in `new` than in `old`, and for each kernel that is in only one of them."""
    worse = [f"{name}: only in the {'old' if name in old else 'new'} facts" for name in sorted(old.keys() ^ new.keys())]
    for name in sorted(old.keys() & new.keys()):
        before, now = old[name], new[name]
        limits = {
            "registers": _SLACK * before["registers"],
            "spill_bytes": before["spill_bytes"],
            "shared_bytes": before["shared_bytes"],
        }
        worse += [f"{name}: {key} {before[key]} → {now[key]}" for key, most in limits.items() if now[key] > most]
        for key, kinds, sign in (("tensor-core", _TENSOR_CORE, 1), ("shared-memory", _THROUGH_SHARED_MEMORY, -1)):
            had, has = (sum(facts["loop"].get(kind, 0) for kind in kinds) for facts in (before, now))
            if sign * has < sign * had:
                worse.append(f"{name}: {key} instructions in the main loop {had} → {has}")
    return worse


def main() -> None:
    """Write the facts, and print what is worse than before."""
    new: dict[str, Any] = {"versions": versions(), "kernels": {}}
    for architecture in ARCHITECTURES:
        new["kernels"] |= facts(architecture)
    if FILE.exists():
        old = json.loads(FILE.read_text(encoding="utf-8"))
        print("\n".join(regressions(old["kernels"], new["kernels"])) or "nothing is worse than before")
    FILE.write_text(json.dumps(new, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {len(new['kernels'])} kernels to {FILE}")


if __name__ == "__main__":
    main()
