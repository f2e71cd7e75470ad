"""`gpuconv.fuse`: BatchNorm folded into convolutions, and convolution, residual and activation made one kernel.

    fused, report = gpuconv.fuse(model.eval())
    print(report)                            # what was fused, what was not, and why
    gpuconv.convert(fused)                   # the convolutions that are left

In the graph that torch.fx records each convolution is followed: an evaluation-mode BatchNorm becomes part of its weight
and bias, an addition its residual, an activation its epilogue, as long as nothing else uses the results in between.
"""

import copy
import inspect
import itertools
from collections.abc import Iterable, Set
from typing import NamedTuple

import torch
from torch.fx import GraphModule, Node, Proxy, Tracer

from gpuconv.models.fuse_graph import CONVOLUTIONS, HOOKED, STATEMENTS, Findings, fuse_graph, hooked, in_place
from gpuconv.text import first_few, printable


class FusionReport(NamedTuple):
    """The convolutions that `fuse` fused and those that it kept, by the names of the model's modules.

    str() gives a summary for people.
    """

    fused: tuple[tuple[str, str], ...]  # convolution, what it is now: 'conv+bn+residual+relu'
    kept: tuple[tuple[str, str], ...]  # convolution, why nothing, or nothing more, was fused into it
    untraced: tuple[tuple[str, str], ...]  # module, why torch.fx cannot follow it; its children were looked at

    def __str__(self) -> str:
        names = {name for name, _ in (*self.fused, *self.kept)}
        lines = [f"{len(self.fused)} of {len(names)} convolutions are fused"]
        lines += _grouped("fused", ((what, name) for name, what in self.fused))
        done = {name for name, _ in self.fused}
        lines += _grouped("not fused", ((why, name) for name, why in self.kept if name not in done))
        lines += _grouped("not fused further", ((why, name) for name, why in self.kept if name in done))
        lines += _grouped("torch.fx cannot trace", ((why, name) for name, why in self.untraced))
        return "\n".join(lines)


def _grouped(title: str, pairs: Iterable[tuple[str, str]]) -> list[str]:
    lines = []
    for text, group in itertools.groupby(sorted(pairs, key=lambda pair: pair[0]), key=lambda pair: pair[0]):
        names = [name or "the model itself" for _, name in group]
        lines.append(f"{title}: {len(names)} ({first_few(names, 4)}): {printable(text)}")
    return lines


def fuse(model: torch.nn.Module) -> tuple[torch.nn.Module, FusionReport]:
    """A copy of `model` whose convolutions are fused with what follows them, and a report. `model` is not changed.

    For inference: a module in training mode keeps its BatchNorm, and the copy goes on in the mode that it was traced
    in. Its parameters have the names that they had, without BatchNorm's. Arguments of `forward` that have a default are
    fixed to it. A module that torch.fx cannot trace, or that has hooks, stays as it is, and its children are fused each
    by itself. Nothing is moved past what works in place, or might. Raises TypeError for a model that is not a module.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, but got {type(model).__name__}")
    found = Findings({}, {}, {})
    fused = _fused(_split(copy.deepcopy(model)), "", found, {})
    return fused, FusionReport(*(tuple(part.items()) for part in found))


# ---- tracing --------------------------------------------------------------------------------------------------------


class _Proxy(Proxy):
    """A proxy that records `x += y` as a change in place; torch.fx would record `x = x + y`."""


for _statement in STATEMENTS:
    setattr(
        _Proxy,
        f"__{_statement}__",
        lambda self, other, name=_statement: self.tracer.create_proxy(
            "call_function", in_place, (name, self, other), {}
        ),
    )


class _Tracer(Tracer):
    """A tracer to which modules of PyTorch and of gpuconv, and those that cannot be traced, are single nodes."""

    proxy_buffer_attributes = True  # else a buffer that forward changes is changed now, and never again

    def __init__(self, opaque: Set[torch.nn.Module] = frozenset()) -> None:  # GraphModules are unpickled with no more
        super().__init__()
        self.opaque = opaque

    def proxy(self, node: Node) -> Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: torch.nn.Module, module_qualified_name: str) -> bool:
        return m in self.opaque or isinstance(m, CONVOLUTIONS) or super().is_leaf_module(m, module_qualified_name)


def _fused(
    module: torch.nn.Module, name: str, found: Findings, done: dict[torch.nn.Module, torch.nn.Module]
) -> torch.nn.Module:
    """`module` with everything fused that can be. `done`: what each module became; itself, if not traceable."""
    optional = name and _has_options(module)  # what else the parent calls it with is not known
    reason = "its forward has optional arguments, which its parent may use" if optional else None
    reason = reason or (HOOKED if hooked(module) else None)
    whole = reason is None
    if whole and not any(hooked(part) and not _leaf(part) for part in module.modules()):
        traced = _traced(module, frozenset())
        if isinstance(traced, GraphModule):
            return fuse_graph(traced, name, found)
        reason = traced
    for holder, child_name, child in _children(module):
        if child not in done:
            done[child] = _fused(child, f"{name}.{child_name}".lstrip("."), found, done)
        holder.add_module(child_name.rpartition(".")[2], done[child])
    opaque = {part for part in module.modules() if part is not module and done.get(part) is part}
    if whole and (opaque or reason is None):
        traced = _traced(module, opaque)
        if isinstance(traced, GraphModule):
            return fuse_graph(traced, name, found)
        reason = traced
    found.untraced[name] = str(reason)
    return module


def _children(module: torch.nn.Module) -> list[tuple[torch.nn.Module, str, torch.nn.Module]]:
    """The children that torch.fx traces into, with their parents and names; those in lists and dictionaries too."""
    found = []
    for name, child in module.named_children():
        if type(child) in (torch.nn.ModuleList, torch.nn.ModuleDict):
            found += [(holder, f"{name}.{inner}", part) for holder, inner, part in _children(child)]
        elif not _leaf(child):
            found.append((module, name, child))
    return found


def _leaf(module: torch.nn.Module) -> bool:
    return _Tracer().is_leaf_module(module, "") or isinstance(module, GraphModule)


def _has_options(module: torch.nn.Module) -> bool:
    """Whether `forward` has optional arguments."""
    parameters = inspect.signature(module.forward).parameters.values()
    return any(p.default is not p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)


def _traced(module: torch.nn.Module, opaque: Set[torch.nn.Module]) -> GraphModule | str:
    """`module` as a graph, or why that is not possible."""
    defaults = {
        p.name: p.default for p in inspect.signature(module.forward).parameters.values() if p.default is not p.empty
    }
    try:
        graph = _Tracer(opaque).trace(module, concrete_args=defaults or None)
    except Exception as error:  # whatever a model's code raises when it is given no tensors
        return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return GraphModule(module, graph, type(module).__name__)


def _split(model: torch.nn.Module) -> torch.nn.Module:
    """`model` with every BatchNorm that has an activation of its own (timm's BatchNormAct2d) taken apart, in place."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            named = (getattr(child, part, None) for part in ("drop", "act"))
            parts = [part for part in named if isinstance(part, torch.nn.Module)]
            if isinstance(child, torch.nn.BatchNorm2d) and len(parts) == 2 and not hooked(child):
                plain = torch.nn.BatchNorm2d(child.num_features, child.eps, child.momentum, child.affine)
                plain.__dict__ = {**child.__dict__, "_modules": {}}
                setattr(module, name, torch.nn.Sequential(plain, *parts))
    return model
