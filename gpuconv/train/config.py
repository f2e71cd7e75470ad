"""The settings of a training run, and their defaults for each data set and network."""

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any

import torch

from gpuconv import backends
from gpuconv.errors import UserError
from gpuconv.gpu import device_called

DEFAULT_EPOCHS = 40
DTYPES = ("float32", "float64", "bfloat16", "float16")
# Defaults that replace those of `Config`: for each data set, then for each network.
DATA: dict[str, dict[str, Any]] = {
    "digits": {"shift": 1},
    "cifar10:DIR": {"epochs": 16, "batch_size": 128, "flip": True, "shift": 2},
    "cifar100:DIR": {"epochs": 16, "batch_size": 128, "flip": True, "shift": 2},
    "mnist:DIR": {"epochs": 5, "batch_size": 128, "shift": 2},
    "folder:DIR": {"flip": True},
    "npz:FILE": {},
}
MODELS: dict[str, dict[str, Any]] = {
    "small": {},
    "tutorial": {"epochs": 8, "shift": 1},
    "resnet9": {"epochs": 24, "batch_size": 512, "lr": 0.2, "flip_test": True},
    "resnet18": {"epochs": 30},
    # airbench94.py's, converted from the sum of a batch's losses to their mean, and with more epochs
    "airbench94": {"epochs": 16, "batch_size": 1024, "lr": 1.5, "momentum": 0.85, "weight_decay": 1.33e-3,
                   "label_smoothing": 0.2, "ema": 0.95, "flip_test": True},
    "timm:NAME": {},
    "torchvision:NAME": {},
}  # fmt: skip
_MUST: dict[str, Callable[[Any], bool]] = {
    "at least 1": lambda value: value >= 1,
    "0 or more": lambda value: 0 <= value < math.inf,
    "from 0 to less than 1": lambda value: 0 <= value < 1,
    "a positive number": lambda value: 0 < value < math.inf,
    f"from 0 to {2**32 - 1}": lambda value: 0 <= value < 2**32,
}
AT_LEAST_1, NOT_NEGATIVE, SHARE, POSITIVE, SEED = _MUST


def _setting(default: Any, help: str, *choices: str, must: str | None = None) -> Any:
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, "must": must})


def kind(value: str, known: Iterable[str]) -> str | None:
    """The key of DATA or MODELS that a setting belongs to: 'cifar10:DIR' for 'cifar10:/data'."""
    word, colon, rest = value.partition(":")
    return next((k for k in known if k.partition(":")[:2] == (word, colon) and bool(rest) == bool(colon)), None)


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of a run. The same settings on the same machine give the same weights, bit for bit."""

    data: str = _setting("digits", f"Images to learn from: {', '.join(DATA)}.")
    model: str = _setting("small", f"Network: {', '.join(MODELS)}.")
    loss: str = _setting("cross-entropy", "cross-entropy, or mse (on one-hot targets).", "cross-entropy", "mse")
    label_smoothing: float = _setting(0.0, "Share of a target that is spread over all classes.", must=SHARE)
    optimizer: str = _setting("sgd", "sgd (with Nesterov momentum) or adamw.", "sgd", "adamw")
    schedule: str = _setting("one-cycle", "Schedule of the learning rate: one-cycle or cosine.", "one-cycle", "cosine")
    lr: float = _setting(0.1, "Highest learning rate.", must=POSITIVE)
    momentum: float = _setting(0.9, "Momentum of sgd.", must=SHARE)
    weight_decay: float = _setting(5e-4, "Decay of the weights towards 0.", must=NOT_NEGATIVE)
    clip: float = _setting(
        0.0, "Greatest norm of the gradient; a longer one is scaled down to it. 0: no limit.", must=NOT_NEGATIVE
    )
    epochs: int | None = _setting(None, "Passes over the training set; as many as --steps needs.", must=AT_LEAST_1)
    steps: int | None = _setting(None, "Stop after this many optimiser steps in all.", must=AT_LEAST_1)
    batch_size: int = _setting(64, "Images in a step.", must=AT_LEAST_1)
    ema: float = _setting(
        0.0, "Decay of a moving average of the weights, which is then evaluated and saved. 0: none.", must=SHARE
    )
    patience: int = _setting(
        0,
        "Stop after this many epochs without a better validation score; keep the best. 0: never.",
        must=NOT_NEGATIVE,
    )
    flip: bool = _setting(False, "Mirror every image in every other epoch.")
    shift: int = _setting(0, "Move images by up to this many pixels along each axis.", must=NOT_NEGATIVE)
    cutout: int = _setting(0, "Blacken a square with sides of this many pixels in each image.", must=NOT_NEGATIVE)
    flip_test: bool = _setting(False, "Evaluate on each image and its mirror image, and take the mean.")
    size: int = _setting(
        0, "Side of the squares that a folder's images are scaled and cropped to. 0: leave them as they are, or the "
        "median of their short sides, 224 at most, where they differ.", must=NOT_NEGATIVE
    )  # fmt: skip
    skip_broken: bool = _setting(False, "Leave out images of a folder that cannot be read.")
    backend: str = _setting(
        "auto", f"Backend that computes convolutions: {', '.join((*backends.CHOICES, *backends.names()))}."
    )
    device: str = _setting("cpu", "cpu, cuda or cuda:N; cuda where there is a GPU.")
    dtype: str = _setting(
        "float32", f"{', '.join(DTYPES)}; the 16-bit ones by autocast, with float32 weights.", *DTYPES
    )
    channels_last: bool = _setting(False, "Use the channels-last layout, which suits tensor cores.")
    compile: bool = _setting(False, "Train through torch.compile.")
    seed: int = _setting(0, "The same seed gives the same weights, bit for bit.", must=SEED)

    @classmethod
    def of(cls, values: object) -> "Config":
        """The Config whose `dataclasses.asdict` is `values`; other keys are ignored.

        Raises UserError where a setting is missing or has the wrong type.
        """
        hints = typing.get_type_hints(cls)
        if not isinstance(values, dict) or hints.keys() - values.keys():
            missing = ", ".join(name for name in hints if not isinstance(values, dict) or name not in values)
            raise UserError(f"settings are missing: {missing}")
        for name, hint in hints.items():
            right = isinstance(values[name], int | float if hint is float else hint)
            if not right or (isinstance(values[name], bool) and hint is not bool):
                wanted = hint if isinstance(hint, types.UnionType) else hint.__name__
                raise UserError(f"{name} must be {wanted}, but got {values[name]!r}")
        return cls(**{name: values[name] for name in hints})

    @classmethod
    def given(cls, **given: Any) -> "Config":
        """The Config with these settings; one that is left out or None gets the default that suits the others."""
        given = {name: value for name, value in given.items() if value is not None}
        fit: dict[str, Any] = {"backend": backends.selected(), "device": "cuda" if torch.cuda.is_available() else "cpu"}
        for name, known in (("data", DATA), ("model", MODELS)):
            fit |= known.get(kind(given.get(name, getattr(cls, name)), known) or "", {})
        if "steps" in given:
            fit.pop("epochs", None)
        if given.get("loss") == "mse":
            fit["lr"] = 5 * float(fit.get("lr", cls.lr))  # the mean square over ten outputs has small gradients
        if given.get("optimizer") == "adamw":
            fit["lr"] = 2e-3
        return cls(**fit | given)

    def check(self) -> None:
        """Raise UserError, or BackendUnavailable, unless a run could start here with these settings."""
        for field in dataclasses.fields(self):
            value, must, choices = getattr(self, field.name), field.metadata["must"], field.metadata["choices"]
            known: Iterable[str] = {"data": DATA, "model": MODELS}.get(field.name, choices)
            if known and kind(value, known) is None:
                raise UserError(f"{field.name} must be one of {', '.join(known)}, but got {value!r}")
            if must and value is not None and not _MUST[must](value):
                raise UserError(f"{field.name.replace('_', ' ')} must be {must}, but got {value}")
        try:
            device_called(self.device)
            backends.require(self.backend)
        except ValueError as error:
            raise UserError(str(error)) from None

    def length(self, images: int, min_batch: int = 1) -> tuple[int, int]:
        """(steps in all, steps per epoch) on a training set of `images`; an epoch's last batch may be smaller.

        min_batch: fewer images join the batch before, as in `data.epoch_batches`.
        """
        epoch, rest = divmod(images, self.batch_size)
        epoch += rest >= min_batch or not epoch
        if self.steps is not None and self.epochs is None:
            return self.steps, epoch
        steps = (self.epochs or DEFAULT_EPOCHS) * epoch
        return min(steps, self.steps or steps), epoch

    @property
    def weight_dtype(self) -> torch.dtype:
        """The type of the weights; the 16-bit types compute under autocast with float32 weights."""
        return torch.float64 if self.dtype == "float64" else torch.float32
