"""The settings of a run, and the error for everything that a user can put right."""

import dataclasses
import math
import typing
from collections.abc import Iterable

import torch

from gpuconv import backends
from gpuconv.train.data import DATASETS
from gpuconv.train.model import NETWORKS

DEFAULT_EPOCHS = 40
DEFAULT_LR = {"cross-entropy": 0.1, "mse": 0.5}  # the mean square over ten outputs has small gradients
DTYPES = ("float32", "float64", "bfloat16", "float16")


class UserError(Exception):
    """A bad setting, a damaged run folder, a full disk: one line says what, and no traceback is wanted."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What a run is made from. The same settings on the same machine give the same weights, bit for bit."""

    data: str = "digits"
    model: str = "small"
    loss: str = "cross-entropy"
    backend: str = "auto"
    device: str = "cpu"
    dtype: str = "float32"
    epochs: int | None = None  # None: DEFAULT_EPOCHS, or as many as `steps` needs
    steps: int | None = None  # None: as many as the epochs have
    batch_size: int = 64
    lr: float = DEFAULT_LR["cross-entropy"]  # the peak of the schedule
    seed: int = 0

    @classmethod
    def of(cls, values: object) -> "Config":
        """The Config that `dataclasses.asdict` made `values` from; other keys are ignored.

        Raises UserError where a setting is missing or has the wrong type.
        """
        hints = typing.get_type_hints(cls)
        if not isinstance(values, dict) or hints.keys() - values.keys():
            missing = ", ".join(name for name in hints if not isinstance(values, dict) or name not in values)
            raise UserError(f"settings are missing: {missing}")
        for name, hint in hints.items():
            if isinstance(values[name], bool) or not isinstance(values[name], int | float if hint is float else hint):
                raise UserError(f"{name} must be {getattr(hint, '__name__', hint)}, but got {values[name]!r}")
        return cls(**{name: values[name] for name in hints})

    def check(self) -> None:
        """Raise UserError, or BackendUnavailable, unless a run could start here with these settings."""
        choices: dict[str, Iterable[str]] = {"data": DATASETS, "model": NETWORKS, "loss": DEFAULT_LR, "dtype": DTYPES}
        for name, allowed in choices.items():
            if getattr(self, name) not in tuple(allowed):
                raise UserError(f"{name} must be one of {', '.join(allowed)}, but got {getattr(self, name)!r}")
        for name in ("epochs", "steps", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name.replace('_', ' ')} must be at least 1, but got {value}")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise UserError(f"lr must be a positive number, but got {self.lr}")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed must be from 0 to {2**32 - 1}, but got {self.seed}")
        kind, _, index = self.device.partition(":")
        if self.device not in ("cpu", "cuda") and not (kind == "cuda" and index.isdecimal()):
            raise UserError(f"device must be cpu, cuda or cuda:N, but got {self.device!r}")
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if kind == "cuda" and int(index or 0) >= gpus:
            raise UserError(f"device {self.device!r} is not there: PyTorch finds {gpus or 'no'} GPU{'s' * (gpus != 1)}")
        try:
            backends.require(self.backend)
        except ValueError as error:
            raise UserError(str(error)) from None

    def length(self, images: int) -> tuple[int, int]:
        """(steps in all, steps an epoch) on a training set of `images`; an epoch's last batch may be a small one."""
        epoch = math.ceil(images / self.batch_size)
        if self.steps is not None and self.epochs is None:
            return self.steps, epoch
        steps = (self.epochs or DEFAULT_EPOCHS) * epoch
        return min(steps, self.steps or steps), epoch

    @property
    def weight_dtype(self) -> torch.dtype:
        """The type of the weights; the 16-bit types compute under autocast with float32 weights."""
        return torch.float64 if self.dtype == "float64" else torch.float32
