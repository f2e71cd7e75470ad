"""The result of reading a data set: NumPy arrays, the names of the classes, and notes for the user."""

import dataclasses
from typing import Any

import numpy as np

Part = tuple[Any, Any]  # images [N, C, H, W] uint8 or floats, labels [N] integers


@dataclasses.dataclass
class RawData:
    """A data set: the part 'train', and perhaps 'val' and 'test', each with its images and labels."""

    parts: dict[str, Part]
    classes: tuple[str, ...]
    top: float = 255.0  # the value that stands for 1
    skipped: tuple[str, ...] = ()  # images that could not be read
    notes: tuple[str, ...] = ()  # what was left out, and how the rest was interpreted


def nth_of_class(labels: Any, n: int) -> Any:
    """For each of labels [N], whether its image is the n-th, 2n-th, … of its class."""
    order = np.argsort(labels, kind="stable")
    _, first, counts = np.unique(labels[order], return_index=True, return_counts=True)
    place = np.empty(len(labels), np.int64)  # within its class, from 0 on
    place[order] = np.arange(len(labels)) - np.repeat(first, counts)
    return place % n == n - 1
