"""What `torch.utils.flop_counter` counts for the three ops: what it counts for PyTorch's own convolution.

Importing the counter imports Triton, so the formulas are registered when somebody else imports it.
"""

import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch

from gpuconv import ops  # noqa: F401  # defines the ops

_COUNTER = "torch.utils.flop_counter"


def register(counter: ModuleType) -> None:
    """Register a formula for each op with the module torch.utils.flop_counter."""
    ours = torch.ops.gpuconv

    @counter.register_flop_formula(ours.conv_forward)
    def forward(x: Any, w: Any, *_: Any, out_shape: Any, **__: Any) -> int:
        return counter.conv_flop(x, w, None, None, None, None, False, out_val=out_shape)

    @counter.register_flop_formula(ours.conv_grad_input)
    def grad_input(gy: Any, w: Any, *_: Any, out_shape: Any, **__: Any) -> int:
        return counter.conv_flop(gy, w, None, None, None, None, True, out_val=out_shape)

    @counter.register_flop_formula(ours.conv_grad_weight)
    def grad_weight(gy: Any, x: Any, *_: Any, out_shape: Any, **__: Any) -> int:
        shapes = (None, out_shape[0], None)
        return counter.conv_backward_flop(
            gy, x, None, None, None, None, None, False, None, None, [False, True, False], out_val=shapes
        )


class _WhenImported:
    """A finder on sys.meta_path, first in line, that registers the formulas once the counter has been imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != _COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                register(module)

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


if _COUNTER in sys.modules:
    register(sys.modules[_COUNTER])
else:
    sys.meta_path.insert(0, _WhenImported())
