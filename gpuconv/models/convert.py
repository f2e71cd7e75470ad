"""An existing model computed by gpuconv: `convert` its modules, or `patch` the functions that they call.

    report = gpuconv.convert(model)         # in place; print(report) says what was not converted, and why
    gpuconv.revert(model)                   # and back
    with gpuconv.patch(): model(x)          # modules with a forward of their own too

Converting exchanges a module's class and nothing else: the object, its parameters, hooks, parametrizations, name,
training flag and state_dict stay what they were. `torch.onnx.export` gives standard Conv nodes all the same. A program
of `torch.export` that is to run without gpuconv is exported within `gpuconv.use_backend("aten")`.
"""

import dataclasses
import itertools
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from gpuconv import nn
from gpuconv.ops.overrides import Routing
from gpuconv.problem import CHANNELS_LAST
from gpuconv.text import first_few, printable

Module = TypeVar("Module", bound=torch.nn.Module)

_NAMES = ("Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d")
_OURS: dict[type, type] = {
    getattr(torch.nn, lazy + name): getattr(nn, lazy + name) for lazy in ("", "Lazy") for name in _NAMES
}
_THEIRS: dict[type, type] = {ours: theirs for theirs, ours in _OURS.items()}
_CONVOLUTIONS = tuple(_OURS)


@dataclasses.dataclass(frozen=True)
class ConversionReport:
    """The modules that `convert` converted and those that it kept, by their names in `model.named_modules()`.

    '' is the model itself. str() gives a summary for people.
    """

    converted: tuple[str, ...]
    kept: tuple[tuple[str, str], ...]  # name, why it was not converted
    advice: str | None = None  # on the memory format

    def __str__(self) -> str:
        count = len(self.converted) + len(self.kept)
        lines = [f"{len(self.converted)} of {count} convolutions are computed by gpuconv"]
        for reason, group in itertools.groupby(sorted(self.kept, key=lambda kept: kept[1]), key=lambda kept: kept[1]):
            names = [name or "the model itself" for name, _ in group]
            lines.append(f"not converted: {len(names)} ({first_few(names, 4)}): {printable(reason)}")
        if self.advice:
            lines.append(f"advice: {self.advice}")
        return "\n".join(lines)


# ---- modules --------------------------------------------------------------------------------------------------------


def convert(model: torch.nn.Module, memory_format: torch.memory_format | None = None) -> ConversionReport:
    """Make every convolution in `model` that is exactly one of PyTorch's six modules compute by gpuconv, in place.

    Parametrized and lazy modules are converted too. A subclass of PyTorch's module is not, because its forward may
    differ; `patch` reaches the functions that it calls. memory_format: also move the model to it,
    `torch.channels_last` say. Gives a report, in which every module that was kept has its reason.

    Raises TypeError for other than a module or a memory_format. Converting twice is harmless.
    Convert before the model first runs compiled: PyTorch 2.11 would go on with what it compiled, 2.14 compiles again.
    """
    _check_model(model)
    if memory_format is not None and not isinstance(memory_format, torch.memory_format):
        raise TypeError(f"memory_format must be a torch.memory_format or None, but got {memory_format!r}")
    converted, kept, modules = [], [], []
    for name, module in model.named_modules():
        reason = _exchange(module, _OURS)
        if reason is None:
            converted.append(name)
            modules.append(module)
        elif reason:
            kept.append((name, reason))
    if memory_format is not None:
        model.to(memory_format=memory_format)
    return ConversionReport(tuple(converted), tuple(kept), _advice(modules) if memory_format is None else None)


def revert(model: Module) -> Module:
    """Undo `convert`: every convolution of gpuconv in `model` becomes PyTorch's again, in place; gives `model`.

    So do modules that were made as `gpuconv.nn` ones. The memory format stays. Raises TypeError as `convert` does.
    """
    _check_model(model)
    for module in model.modules():
        _exchange(module, _THEIRS)
    return model


def _check_model(model: Any) -> None:
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, but got {type(model).__name__}")


def _exchange(module: torch.nn.Module, to: dict[type, type]) -> str | None:
    """Give `module` the class that `to` has for it. Gives None, or why it was kept; '' for other than convolutions."""
    cls = type(module)
    if cls in to.values():
        return None
    if cls in to:
        replaced = [name for name in ("forward", "_conv_forward") if name in vars(module)]
        if replaced:
            return f"its `{replaced[0]}` was replaced on the object; gpuconv.patch() may reach it"
        if to is _OURS and getattr(module, "qconfig", None) is not None:
            return "it has a qconfig: torch.ao.quantization would not know it again"
        module.__class__ = to[cls]
        return None
    if _made_by_parametrize(module):
        base = cls.__bases__[0]
        if base in to:
            module.__class__ = _rebased(cls, to[base])
            return None
        return None if base in to.values() else _why_not(base, module)
    return _why_not(cls, module)


def _made_by_parametrize(module: torch.nn.Module) -> bool:
    return parametrize.is_parametrized(module) and type(module).__name__.startswith("Parametrized")


def _rebased(parametrized: type, base: type) -> type:
    """The class that parametrize would have made from `base`; a new one, since copies of a module share theirs."""
    own = {k: v for k, v in vars(parametrized).items() if k not in ("__dict__", "__weakref__", "__doc__")}
    return type(parametrized.__name__, (base,), own)


def _why_not(cls: type, module: torch.nn.Module) -> str:
    """Why a module of this class is kept; '' if it is no convolution at all."""
    shown = f"{cls.__module__}.{cls.__qualname__}"
    if isinstance(module, torch.jit.ScriptModule):
        name = getattr(module, "original_name", "")
        return f"TorchScript: its {name} is compiled already" if name in _NAMES else ""
    quantised = cls.__module__.startswith(("torch.ao.nn.", "torch.nn.quantized", "torch.nn.qat"))
    if quantised and "Conv" in cls.__name__:
        return f"{shown} is quantised, or imitates that, and has kernels of its own"
    if not issubclass(cls, _CONVOLUTIONS) or issubclass(cls, tuple(_THEIRS)):
        return ""
    theirs = next(base for base in cls.__mro__ if base in _OURS)
    before = cls.__mro__[: cls.__mro__.index(theirs)]
    methods = ("forward", "_conv_forward", "__call__")
    own = [method for method in methods if any(method in vars(base) for base in before)]
    does = f"overrides {' and '.join(own)}" if own else "may have changed what it does"
    return f"{shown} is a subclass of torch.nn.{theirs.__name__} that {does}; gpuconv.patch() reaches what it calls"


def _advice(modules: Iterable[torch.nn.Module]) -> str | None:
    for module in modules:
        weight = module._parameters.get("weight")  # a computed one is not read: spectral_norm changes when it is
        if weight is None or torch.nn.parameter.is_lazy(weight) or weight.dim() not in CHANNELS_LAST:
            continue
        memory_format = CHANNELS_LAST[weight.dim()]
        if not weight.is_contiguous(memory_format=memory_format):
            return (
                f"on a GPU the tensor-core kernels are made for channels-last tensors: "
                f"gpuconv.convert(model, memory_format={memory_format}), and the same for the input"
            )
    return None


# ---- functions ------------------------------------------------------------------------------------------------------


def patch() -> TorchFunctionMode:
    """A context within which `torch.nn.functional.conv2d`, the five like it and their names in `torch` are gpuconv's.

    It covers calls from the Python code of this thread, in compiled functions too, not calls from C++. Every call of
    PyTorch costs about a microsecond more within it, so prefer `convert` where that suffices. A tensor-like with a
    `__torch_function__` of its own comes first, as in PyTorch; convolutions within that are gpuconv's.
    """
    return Routing()
