"""The activations that forward may end with: by name, as NumPy and as PyTorch compute them, and their derivatives.

    name(slope)   y = act(z)                     act'(z), as a function of y or z         PyTorch
    none          z                              1
    relu          max(z, 0)                      y: y > 0                                 relu
    relu6         min(max(z, 0), 6)              y: 0 < y < 6                             relu6
    leaky_relu    z, or slope · z where z < 0    y: 1, or slope where y ≤ 0 (slope ≥ 0)   leaky_relu
    sigmoid       σ(z) = 1 / (1 + exp(−z))       y: y (1 − y)                             sigmoid
    tanh          tanh z                         y: 1 − y²                                tanh
    hardswish     z · clip(z + 3, 0, 6) / 6          z: 0, z/3 + 1/2 or 1                     hardswish
    silu          z · σ(z)                       z: σ (1 + z (1 − σ))                     silu
    gelu          z · Φ(z)                       z: Φ + z φ                               gelu
    gelu_tanh     z · (1 + tanh u) / 2           z: see `derivative`                      gelu(approximate="tanh")

(Φ and φ are the normal distribution and its density; u = √(2/π) (z + 0.044715 z³).) Where the derivative is a function
of y, a backward pass needs nothing that the next layer does not keep anyway. Where it is not, because two z give the
same y, z is computed again.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]


class Activation(NamedTuple):
    """An activation by PyTorch's name; `slope` is leaky_relu's negative slope. As text: `name` or `name(slope)`."""

    name: str
    slope: float = 0.01

    @classmethod
    def parse(cls, text: str) -> "Activation":
        """The activation that `text` names. Raises ValueError for one that is not known."""
        name, _, slope = text.partition("(")
        try:
            if name not in LIPSCHITZ or (slope and (name != "leaky_relu" or not slope.endswith(")"))):
                raise ValueError
            return cls(name, float(slope[:-1])) if slope else cls(name)
        except ValueError:
            raise ValueError(f"activation must be one of {', '.join(LIPSCHITZ)}, but got {text!r}") from None

    @classmethod
    def of(cls, what: Any) -> "Activation":
        """The activation that `what` means: its text, PyTorch's module, class or function for it, or None for none.

        Raises TypeError for anything else; ValueError for text, a module or a function that is none of these.
        """
        if isinstance(what, str):
            return cls.parse(what)
        name: str | None = None
        if what is None:
            name = "none"
        elif isinstance(what, torch.nn.Module):
            name = MODULES.get(type(what), lambda module: None)(what)
        elif isinstance(what, type) and what in MODULES:
            return cls.of(what())
        elif callable(what) and what.__hash__ is not None:
            name = FUNCTIONS.get(what)
        else:
            raise TypeError(f"activation must be a str, or a module or function of PyTorch's, but got {what!r}")
        if name is None:
            raise ValueError(
                f"activation must be one of {', '.join(LIPSCHITZ)}, or PyTorch's module or function for it, but got "
                + " ".join(repr(what).split())
            )
        return cls.parse(name)

    def encode(self) -> str:
        """The inverse of `parse`."""
        return f"{self.name}({self.slope!r})" if self.name == "leaky_relu" and self.slope != 0.01 else self.name

    @property
    def from_output(self) -> bool:
        """Whether the derivative is a function of y, the output; else z is needed."""
        return self.name in _FROM_OUTPUT or (self.name == "leaky_relu" and self.slope >= 0)


IDENTITY = Activation("none")

# The largest slope of each activation: how much it can magnify an error of its argument (rounded up).
LIPSCHITZ = {
    "none": 1.0,
    "relu": 1.0,
    "leaky_relu": 1.0,
    "silu": 1.1,
    "gelu": 1.13,
    "gelu_tanh": 1.13,
    "hardswish": 1.5,
    "relu6": 1.0,
    "sigmoid": 1.0,  # 1/4, but the function itself has to be computed
    "tanh": 1.0,
}
# The activations that PyTorch's modules and functions compute.
MODULES: dict[type, Callable[[Any], str | None]] = {
    torch.nn.Identity: lambda m: "none",
    torch.nn.ReLU: lambda m: "relu",
    torch.nn.ReLU6: lambda m: "relu6",
    torch.nn.Hardtanh: lambda m: "relu6" if (m.min_val, m.max_val) == (0, 6) else None,
    torch.nn.LeakyReLU: lambda m: Activation("leaky_relu", float(m.negative_slope)).encode(),
    torch.nn.Sigmoid: lambda m: "sigmoid",
    torch.nn.Tanh: lambda m: "tanh",
    torch.nn.Hardswish: lambda m: "hardswish",
    torch.nn.SiLU: lambda m: "silu",
    torch.nn.GELU: lambda m: "gelu_tanh" if m.approximate == "tanh" else "gelu",
}
FUNCTIONS: dict[Any, str] = {
    F.relu: "relu", F.relu_: "relu", torch.relu: "relu", torch.relu_: "relu", F.relu6: "relu6",
    F.sigmoid: "sigmoid", torch.sigmoid: "sigmoid", F.tanh: "tanh", torch.tanh: "tanh", F.hardswish: "hardswish",
    F.silu: "silu", F.gelu: "gelu", F.leaky_relu: "leaky_relu",
}  # fmt: skip
_FROM_OUTPUT = frozenset({"none", "relu", "relu6", "sigmoid", "tanh"})
_K, _A = math.sqrt(2 / math.pi), 0.044715  # of gelu_tanh


# ---- NumPy: the oracle ----------------------------------------------------------------------------------------------

_erf = np.vectorize(math.erf, otypes=[np.float64])


def _sigmoid(z: Array) -> Array:
    return 1 / (1 + np.exp(-z))


def _normal(z: Array) -> Array:
    """The normal distribution Φ(z)."""
    return (1 + _erf(z / math.sqrt(2)).astype(z.dtype)) / 2 if z.size else z


def _clip(z: Array) -> Array:
    """min(max(z, 0), 6), NaN kept."""
    return np.where(z < 0, z.dtype.type(0), np.where(z > 6, z.dtype.type(6), z))


def activate(activation: Activation, z: Array) -> Array:
    """activation(z), element by element, in z's dtype; NaN stays NaN."""
    name, slope = activation
    with np.errstate(over="ignore", invalid="ignore"):
        y = {
            "none": lambda: z,
            "relu": lambda: np.where(z < 0, z.dtype.type(0), z),
            "relu6": lambda: _clip(z),
            "leaky_relu": lambda: np.where(z < 0, z * z.dtype.type(slope), z),
            "sigmoid": lambda: _sigmoid(z),
            "tanh": lambda: np.tanh(z),
            "hardswish": lambda: z * _clip(z + 3) / 6,
            "silu": lambda: z / (1 + np.exp(-z)),
            "gelu": lambda: z * _normal(z),
            "gelu_tanh": lambda: z * (1 + np.tanh(_K * (z + _A * z**3))) / 2,
        }[name]()
    return y.astype(z.dtype, copy=False)


def derivative(activation: Activation, s: Array) -> Array:
    """The derivative act', element by element, in s's dtype. s: y where `activation.from_output`, else z."""
    name, slope = activation

    def gelu_tanh() -> Array:
        t, du = np.tanh(_K * (s + _A * s**3)), _K * (1 + 3 * _A * s**2)
        return (1 + t) / 2 + s * (1 - t * t) * du / 2

    with np.errstate(over="ignore", invalid="ignore"):
        d = {
            "none": lambda: np.ones_like(s),
            "relu": lambda: np.where(s <= 0, 0.0, 1.0),
            "relu6": lambda: np.where((s <= 0) | (s >= 6), 0.0, 1.0),
            "leaky_relu": lambda: np.where(s > 0, 1.0, slope),
            "sigmoid": lambda: s * (1 - s),
            "tanh": lambda: 1 - s * s,
            "hardswish": lambda: np.where(s <= -3, 0.0, np.where(s < 3, s / 3 + 0.5, 1.0)),
            "silu": lambda: _sigmoid(s) * (1 + s * (1 - _sigmoid(s))),
            "gelu": lambda: _normal(s) + s * np.exp(-s * s / 2) / math.sqrt(2 * math.pi),
            "gelu_tanh": gelu_tanh,
        }[name]()
    return d.astype(s.dtype, copy=False)


# ---- PyTorch: what backend `aten` computes, and what torch.func transforms ------------------------------------------


def activate_tensor(activation: Activation, z: Tensor) -> Tensor:
    """activation(z) by PyTorch's own function."""
    name, slope = activation
    if name == "none":
        return z
    if name == "leaky_relu":
        return F.leaky_relu(z, slope)
    if name == "gelu_tanh":
        return F.gelu(z, approximate="tanh")
    if name == "hardswish" and z.dtype is torch.float64:  # PyTorch's has 1/6 in float32, on GPUs and in gradients
        return z * F.relu6(z + 3) / 6
    function: Callable[[Tensor], Tensor] = getattr(torch, name) if name in ("sigmoid", "tanh") else getattr(F, name)
    return function(z)


def backward_tensor(activation: Activation, grad: Tensor, s: Tensor) -> Tensor:
    """grad · act' by PyTorch's own functions, which have derivatives. s: y where `activation.from_output`, else z."""
    aten = torch.ops.aten
    name, slope = activation
    if name == "none":
        return grad
    if name == "relu":
        return aten.threshold_backward(grad, s, 0)
    if name == "relu6":
        return aten.hardtanh_backward(grad, s, 0, 6)
    if name == "leaky_relu":
        return aten.leaky_relu_backward(grad, s, slope, False)
    if name == "sigmoid":
        return aten.sigmoid_backward(grad, s)
    if name == "tanh":
        return aten.tanh_backward(grad, s)
    if name == "hardswish":
        if s.dtype is torch.float64:
            return grad * torch.where(s <= -3, 0.0, torch.where(s < 3, s / 3 + 0.5, 1.0))
        return aten.hardswish_backward(grad, s)
    if name == "silu":
        return grad * (torch.sigmoid(s) * (1 + s * torch.sigmoid(-s)))  # aten.silu_backward has no derivative
    return aten.gelu_backward(grad, s, approximate="tanh" if name == "gelu_tanh" else "none")


def second_derivative(activation: Activation, s: Tensor) -> Tensor | None:
    """The derivative of `derivative` by s, by PyTorch's functions; None where it is 0 almost everywhere."""
    name = activation.name
    if name == "sigmoid":
        return 1 - 2 * s
    if name == "tanh":
        return -2 * s
    if name == "hardswish":
        return ((s > -3) & (s < 3)).to(s.dtype) / 3
    if name == "silu":
        p = torch.sigmoid(s)
        return p * (1 - p) * (2 + s * (1 - 2 * p))
    if name == "gelu":
        return torch.exp(-s * s / 2) / math.sqrt(2 * math.pi) * (2 - s * s)
    if name == "gelu_tanh":
        t, du = torch.tanh(_K * (s + _A * s**3)), _K * (1 + 3 * _A * s**2)
        return (1 - t * t) * (du + s * (3 * _K * _A * s - t * du * du))
    return None
