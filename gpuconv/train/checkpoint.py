"""Checkpoints: tensors and JSON in one safetensors file with a checksum; nothing in it is ever executed.

A checkpoint holds all that decides how a run continues: weights, their average, the state of optimiser and scaler, the
random generators of every process, and the position in the epoch. The schedule and the batches follow from these.
"""

import json
import random
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from gpuconv.errors import UserError
from gpuconv.files import write_atomically
from gpuconv.train import distributed
from gpuconv.train.loop import Training


def write(path: Path, content: bytes) -> None:
    """Make `content` the file at `path`. Raises UserError where it cannot; a file that was there then stays."""
    try:
        write_atomically(path, content)
    except OSError as error:
        kept = "; the one saved before is still there" if path.exists() else ""
        raise UserError(f"cannot write {path}: {error.strerror}{kept}") from None


def to_bytes(tensors: Mapping[str, Tensor], about: Any = None) -> bytes:
    """The content of a file that holds the tensors and `about`, any value of JSON."""
    copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    # One entry, since safetensors writes several in random order.
    return safetensors.torch.save(copies, {"gpuconv": json.dumps({"crc32": _checksum(copies, about), "about": about})})


def from_bytes(content: bytes, path: Path) -> tuple[dict[str, Tensor], Any]:
    """The tensors and `about` that `to_bytes` got. Raises UserError, naming the file, where the content is damaged."""
    try:
        tensors = safetensors.torch.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        found = json.loads(header.get("__metadata__", {}).get("gpuconv", "{}"))
        if found and found["crc32"] != _checksum(tensors, found["about"]):
            raise ValueError("its checksum is wrong")
        return tensors, found.get("about")
    except (safetensors.SafetensorError, KeyError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}") from None


def _checksum(tensors: Mapping[str, Tensor], about: Any) -> str:
    found = zlib.crc32(json.dumps(about).encode())
    for name in sorted(tensors):
        found = zlib.crc32(tensors[name].flatten().view(torch.uint8).numpy().data, zlib.crc32(name.encode(), found))
    return f"{found:08x}"


def load_weights(network: nn.Module, found: Mapping[str, Tensor], path: Path) -> None:
    """Load the tensors of a file into the network. Raises UserError, with nothing changed, where they do not fit."""
    expected = network.state_dict()
    for name in sorted(expected.keys() | found.keys()):
        shapes = [list(tensors[name].shape) if name in tensors else None for tensors in (expected, found)]
        if shapes[0] != shapes[1]:
            raise UserError(f"{path} is another network's: expected {name} of shape {shapes[0]}, but got {shapes[1]}")
    network.load_state_dict(found)


def pack(training: Training, tally: dict[str, Any]) -> bytes:
    """The content of a checkpoint of `training` and `tally`, values of JSON. Every process must call it."""
    at, device = training.at, training.at.sums.device
    tensors = {f"network.{name}": value for name, value in training.network.state_dict().items()}
    if training.average is not None:
        tensors |= {f"average.{name}": value for name, value in training.average.state_dict().items()}
    for index, state in training.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items() if value is not None}
    tensors["sums"] = distributed.gather(at.sums.cpu())
    tensors["torch"] = distributed.gather(torch.get_rng_state())
    if device.type == "cuda":
        tensors["cuda"] = distributed.gather(torch.cuda.get_rng_state(device))
    numpy: dict[str, Any] = dict(np.random.get_state(legacy=False))
    numpy["state"] = numpy["state"] | {"key": numpy["state"]["key"].tolist()}
    images, scaler = distributed.gather(torch.tensor(at.images)).tolist(), training.scaler.state_dict()
    about = {"step": at.step, "images": images, "scaler": scaler, "python": random.getstate(), "numpy": numpy}
    return to_bytes(tensors, about | {"tally": tally})


def unpack(training: Training, content: bytes, path: Path, tally: dict[str, Any]) -> dict[str, Any]:
    """Restore `training` and the random generators that `pack` saved; returns the tally, which has the keys of `tally`.

    Raises UserError where the content is damaged, another network's, or from another number of processes.
    """
    tensors, about = from_bytes(content, path)
    try:
        if len(about["images"]) != distributed.world_size():
            raise UserError(f"{path} is of {len(about['images'])} processes, but there are {distributed.world_size()}")
        parts: dict[str, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            part, _, rest = name.partition(".")
            parts.setdefault(part, {})[rest] = value
        load_weights(training.network, parts["network"], path)
        if training.average is not None:
            load_weights(training.average, parts["average"], path)
        params = [param for group in training.optimizer.param_groups for param in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in parts.get("optimizer", {}).items():
            index, _, key = name.partition(".")
            param = params[int(index)]  # a fused step wants its state to lie in memory as the weights do
            like = torch.empty_like(param, dtype=value.dtype) if value.shape == param.shape else torch.empty_like(value)
            state.setdefault(int(index), {})[key] = like.copy_(value)
        groups = training.optimizer.state_dict()["param_groups"]
        training.optimizer.load_state_dict({"state": state, "param_groups": groups})
        training.scaler.load_state_dict(about["scaler"])
        at, rank = training.at, distributed.rank()
        at.step, at.images = about["step"], about["images"][rank]
        at.sums.copy_(tensors["sums"][rank])
        torch.set_rng_state(tensors["torch"][rank].clone())  # it wants aligned memory
        if "cuda" in tensors:
            torch.cuda.set_rng_state(tensors["cuda"][rank].clone(), at.sums.device)
        version, state_of_python, gauss = about["python"]
        random.setstate((version, tuple(state_of_python), gauss))
        np.random.set_state(about["numpy"])
        return {name: about["tally"][name] for name in tally}
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is damaged: it is no checkpoint, or not a whole one ({error!r})") from None
