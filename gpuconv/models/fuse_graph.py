"""Fusion in a graph of torch.fx: each convolution takes in the BatchNorm, addition and activation that follow it."""

import builtins
import inspect
import math
import operator
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils.parametrize import is_parametrized

from gpuconv import functional, nn, sizes, transposed
from gpuconv.activations import FUNCTIONS, MODULES, Activation, activate_tensor

STATEMENTS = tuple(
    f"i{name}" for name in (
        "add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "lshift", "rshift")
)  # fmt: skip
HOOKED = "it has hooks, or a forward of its own"


class Findings(NamedTuple):
    """The entries of `gpuconv.models.fuse.FusionReport`, as they are found."""

    fused: dict[str, str]
    kept: dict[str, str]
    untraced: dict[str, str]


def _fits(self: Any, input: Tensor, residual: Tensor) -> bool:
    """Whether `residual` has the shape and dtype of this layer's output."""
    stride, dilation = self.stride, self.dilation
    pads = sizes.normalize_padding(self.padding, self.kernel_size, stride, dilation)
    size = sizes.output_size(input.shape[-len(stride) :], self.kernel_size, stride, pads, dilation)
    batch = tuple(input.shape[: -len(stride) - 1])
    return residual.shape == (*batch, self.out_channels, *size) and residual.dtype == input.dtype


class _AddsAnything:
    """Mixed in before a layer whose residual may also be broadcast or of another type, as PyTorch adds."""

    def forward(self: Any, input: Tensor, residual: Tensor | None = None) -> Tensor:
        if residual is None or _fits(self, input, residual):
            return super().forward(input, residual)  # type: ignore[misc]
        y = self._conv_forward(input, self.weight, self.bias, activation="none")
        return activate_tensor(Activation.parse(self.activation), y + residual)


class _ConvAct1d(_AddsAnything, nn.ConvAct1d):
    pass


class _ConvAct2d(_AddsAnything, nn.ConvAct2d):
    pass


class _ConvAct3d(_AddsAnything, nn.ConvAct3d):
    pass


_FUSED: dict[type, type] = {
    torch.nn.Conv1d: _ConvAct1d, torch.nn.Conv2d: _ConvAct2d, torch.nn.Conv3d: _ConvAct3d,
    nn.Conv1d: _ConvAct1d, nn.Conv2d: _ConvAct2d, nn.Conv3d: _ConvAct3d,
}  # fmt: skip
CONVOLUTIONS = (*_FUSED, torch.nn.ConvTranspose1d, torch.nn.ConvTranspose2d, torch.nn.ConvTranspose3d)


def in_place(statement: str, left: Any, right: Any) -> Any:
    """`left += right` and the like, as a function: `statement` is 'iadd', say."""
    return getattr(operator, statement)(left, right)


class _Chain(NamedTuple):
    """A convolution and the nodes behind it that become part of it."""

    conv: Node
    bn: Node | None
    add: Node | None
    residual: Node | None
    act: Node | None
    activation: str
    why_no_more: str

    @property
    def nodes(self) -> list[Node]:
        return [node for node in (self.conv, self.bn, self.add, self.act) if node is not None]

    @property
    def what(self) -> str:
        parts = ["conv", *(["bn"] if self.bn else []), *(["residual"] if self.add else [])]
        return "+".join([*parts, *([self.activation] if self.act else [])])


def fuse_graph(traced: GraphModule, name: str, found: Findings) -> GraphModule:
    """`traced`, the model's module of this name, with its convolutions fused."""
    graph, modules = traced.graph, dict(traced.named_modules())
    for node in list(graph.nodes):
        if node.op == "call_module" and len(node.args) == 1 and _does_nothing(modules[node.target]):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    calls = [node.target for node in graph.nodes if node.op == "call_module"]
    for node in list(graph.nodes):
        conv = modules.get(node.target) if node.op == "call_module" else None
        if conv is None or not isinstance(conv, CONVOLUTIONS) or isinstance(conv, nn._Activated):
            continue
        full_name = f"{name}.{node.target}".lstrip(".")
        reason = _why_not(conv, calls.count(node.target))
        if reason is not None:
            found.kept[full_name] = reason
            continue
        chain = _follow(node, modules)
        if len(chain.nodes) == 1:
            found.kept[full_name] = chain.why_no_more
            continue
        fused = _module(conv, None if chain.bn is None else modules[chain.bn.target], chain.activation)
        traced.set_submodule(node.target, fused)
        modules[node.target] = fused
        _replace(graph, chain)
        found.fused[full_name] = chain.what
        found.kept.pop(full_name, None)
        if chain.act is None:
            found.kept[full_name] = chain.why_no_more
    graph.lint()
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


def _does_nothing(module: torch.nn.Module) -> bool:
    dropout = isinstance(module, _DropoutNd) and not module.training
    return (dropout or type(module) is torch.nn.Identity) and _plain(module)


def _why_not(conv: Any, calls: int) -> str | None:
    if type(conv) not in _FUSED and not isinstance(conv, tuple(_FUSED)):
        return "a transposed convolution has no epilogue"
    if type(conv) not in _FUSED:
        return f"{type(conv).__module__}.{type(conv).__qualname__} is a subclass, or parametrized"
    if calls > 1:
        return "it is called more than once"
    return None if _plain(conv) else HOOKED


def hooked(module: torch.nn.Module) -> bool:
    """Whether a call of `module` is more, or other, than its class's `forward`."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in vars(module)


def _plain(module: torch.nn.Module) -> bool:
    return not hooked(module) and not is_parametrized(module)


def _follow(conv: Node, modules: dict[str, torch.nn.Module]) -> _Chain:
    """The chain of nodes that can be fused into a convolution."""
    chain = _Chain(conv, None, None, None, None, "none", "")
    while True:
        last = chain.nodes[-1]
        if len(last.users) != 1:
            return chain._replace(
                why_no_more="its output is used more than once" if last.users else "its output is not used"
            )
        (user,) = last.users
        longer = _extended(chain, last, user, modules)
        if isinstance(longer, str):
            return chain._replace(why_no_more=longer)
        changed = _changed_between(longer, modules)
        if changed is not None:
            return chain._replace(why_no_more=changed)
        chain = longer
        if chain.act is not None:
            return chain


def _extended(chain: _Chain, last: Node, user: Node, modules: dict[str, torch.nn.Module]) -> _Chain | str:
    """The chain with one node more, or why that is not possible."""
    module = modules.get(str(user.target)) if user.op == "call_module" else None
    if module is not None and not _plain(module):
        return f"{user.target}, which follows it, has hooks, or a forward of its own"
    if isinstance(module, _BatchNorm) and chain.bn is None and chain.add is None:
        if module.training:
            return "BatchNorm is in training mode"
        if module.running_mean is None or module.running_var is None:
            return "BatchNorm has no running statistics"
        if _looked_at(chain, (modules[str(last.target)], module), modules):
            return "forward looks at the weights themselves, which BatchNorm would change"
        return chain._replace(bn=user) if len(user.all_input_nodes) == 1 else "BatchNorm is called in an unusual way"
    addends = _addends(user)
    if chain.add is None and addends is not None:
        left, right = addends
        other = right if left is last else left
        if not isinstance(other, Node) or left is right:
            return "what is added to it is no other tensor"
        if left is not last and (user.target is in_place or user.target == "add_"):
            return "it is added to another tensor in place"
        return chain._replace(add=user, residual=other)
    activation = _activation_of(user, module)
    if activation is not None:
        return chain._replace(act=user, activation=activation)
    if user.op == "output":
        return "nothing follows it"
    if isinstance(module, CONVOLUTIONS):
        return "a convolution follows it"
    shown = type(module).__name__ if module is not None else getattr(user.target, "__name__", str(user.target))
    return f"{shown} follows it"


def _addends(node: Node) -> tuple[Any, Any] | None:
    """The two operands of an addition; None for another node."""
    known: Any
    if node.op == "call_method":
        known, args = node.target in ("add", "add_"), node.args
    elif node.target is in_place:
        known, args = node.args[0] == "iadd", node.args[1:]
    else:
        known, args = node.op == "call_function" and node.target in (operator.add, torch.add), node.args
    return (args[0], args[1]) if known and len(args) == 2 and not node.kwargs else None


_METHODS = {"relu": "relu", "relu_": "relu", "sigmoid": "sigmoid", "tanh": "tanh"}


def _activation_of(node: Node, module: torch.nn.Module | None) -> str | None:
    """The activation that a node computes; None for another node."""
    if module is not None:
        return MODULES.get(type(module), lambda m: None)(module)
    kwargs = {key: value for key, value in node.kwargs.items() if key != "inplace"}
    if node.op == "call_method":
        return _METHODS.get(str(node.target)) if len(node.args) == 1 and not kwargs else None
    name = FUNCTIONS.get(node.target) if node.op == "call_function" else None
    options = (*node.args[1:], *kwargs.values())
    if name == "leaky_relu" and not isinstance(node.args[-1], bool):  # not with `inplace` as a third argument
        (slope,) = options or (0.01,)
        return Activation(name, float(slope)).encode() if isinstance(slope, (int, float)) else None
    if name == "gelu" and options == ("tanh",):
        return "gelu_tanh"
    return name if not options or options in ((True,), (False,), ("none",)) else None


# ---- what may be moved ----------------------------------------------------------------------------------------------

# A fused convolution is computed where the last of its nodes was, and so reads everything later than before.

_HOMES = (torch, F, operator, builtins, math, torch.fft, torch.linalg, torch.special, functional, transposed)
_OPAQUE = "may change in place what it is given, as far as torch.fx can see"


def _changed_between(chain: _Chain, modules: dict[str, torch.nn.Module]) -> str | None:
    """The node that may change a tensor in place between the chain's first node and its last, in words; or None."""
    node = chain.conv.next
    while node is not chain.nodes[-1]:
        if node not in chain.nodes:
            how = _changes(node, modules)
            if how is not None:
                shown = node.args[0] if node.target is in_place else getattr(node.target, "__name__", node.target)
                return f"meanwhile {shown} {how}"
        node = node.next
    return None


def _changes(node: Node, modules: dict[str, torch.nn.Module]) -> str | None:
    """How a node changes, or may change, tensors that others hold; None where it is known not to."""
    if node.op == "call_module":
        parts = list(modules[str(node.target)].modules())
        if any(getattr(part, "inplace", False) for part in parts):
            return "works in place"
        known = all(type(part).__module__.startswith(("torch.nn.", "gpuconv.")) and _plain(part) for part in parts)
        return None if known else _OPAQUE
    if node.op not in ("call_function", "call_method"):
        return None
    name = str(getattr(node.target, "__name__", node.target))
    if (
        name.endswith("_")
        or name in ("in_place", "setitem", "delitem", "setattr")
        or "out" in node.kwargs
        or _asked_in_place(node)
    ):
        return "works in place"
    if node.op == "call_method":
        return None if hasattr(Tensor, name) else _OPAQUE
    if isinstance(node.target, torch._ops.OpOverload):
        return "works in place" if node.target._schema.is_mutable else None
    return None if any(getattr(home, name, None) is node.target for home in _HOMES) else _OPAQUE


def _asked_in_place(node: Node) -> bool:
    """Whether a function is called with `inplace`, by name or by place."""
    if node.op == "call_method" or "inplace" in node.kwargs:
        return bool(node.kwargs.get("inplace"))
    try:
        given = inspect.signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # one of C++, where names tell
        return False
    return bool(given.arguments.get("inplace"))


def _looked_at(chain: _Chain, parts: Iterable[torch.nn.Module], modules: dict[str, torch.nn.Module]) -> bool:
    """Whether the graph also reads a parameter or buffer of `parts` directly."""
    nodes = (node for node in chain.conv.graph.nodes if node.op == "get_attr")
    taken = [operator.attrgetter(str(node.target))(modules[""]) for node in nodes]
    return any(t is own for part in parts for own in (*part.parameters(), *part.buffers()) for t in taken)


# ---- the replacement ------------------------------------------------------------------------------------------------


def _module(conv: Any, bn: Any, activation: str) -> torch.nn.Module:
    """The layer that computes conv, bn and the activation; it shares the parameters that stay as they are."""
    cls: Any = _FUSED[type(conv)]
    fused = cls.__new__(cls)
    fused.__dict__ = {**conv.__dict__, "_parameters": dict(conv._parameters), "activation": activation}
    if bn is not None:
        scale = torch.rsqrt(bn.running_var.double() + bn.eps)
        scale = scale if bn.weight is None else scale * bn.weight.detach().double()
        weight = conv.weight.detach().double() * scale.reshape(-1, *(1,) * (conv.weight.dim() - 1))
        shift = -bn.running_mean.double() if conv.bias is None else conv.bias.detach().double() - bn.running_mean
        bias = shift * scale if bn.bias is None else shift * scale + bn.bias.detach()
        for name, value in (("weight", weight), ("bias", bias)):
            value = value.to(conv.weight.dtype)
            fused._parameters[name] = torch.nn.Parameter(value, conv.weight.requires_grad)
    return fused


def _replace(graph: Graph, chain: _Chain) -> None:
    """Replace the chain's nodes by one call of the convolution's module, at the place of the last."""
    last = chain.nodes[-1]
    with graph.inserting_before(last):
        extra = () if chain.residual is None else (chain.residual,)
        call = graph.call_module(str(chain.conv.target), (chain.conv.args[0], *extra))
    last.replace_all_uses_with(call)
    for node in reversed(chain.nodes):
        graph.erase_node(node)
