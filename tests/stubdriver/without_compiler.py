"""The errors, and what `auto` does, where Triton cannot compile the C code that launches its kernels.

Run by tests/stubdriver/test_gpus.py in a process of its own, on a GPU that is none. With the argument `no-header` as on
a machine that has Python, but not the header of its C interface.
"""

import json
import sys
import sysconfig

if "no-header" in sys.argv:
    paths = sysconfig.get_paths
    sysconfig.get_paths = lambda *args, **kwargs: paths(*args, **kwargs) | {"include": "/no/such/folder"}

import torch
import triton

from gpuconv.backends import BackendUnavailable
from gpuconv.checking import installation
from gpuconv.planning import plan
from gpuconv.problem import ConvProblem
from gpuconv.settings import Settings

problem = ConvProblem.of(
    (4, 8, 12, 12), (16, 8, 1, 1), dtype=torch.float16, memory_format=torch.channels_last
)  # where `auto` takes Triton's kernels if it can
settings = Settings(problem.stride, problem.padding, problem.dilation, 1)
chosen = plan.choose(problem, "forward", torch.device("cuda", 0), settings)
try:
    plan.choose(problem, "forward", torch.device("cuda", 0), settings._replace(backend="triton"))
    refusal = None
except BackendUnavailable as error:
    refusal = str(error)
report = installation.report()
print(
    json.dumps(
        {
            "reason": report["backends"]["triton"]["reason"],
            "text": installation.text(report),
            "chosen": chosen.backend.name,
            "passed over": dict(chosen.passed_over),
            "refusal": refusal,
            "one launcher for all": refusal is None and hasattr(triton.runtime.driver.active.utils, "launch"),
        }
    )
)
