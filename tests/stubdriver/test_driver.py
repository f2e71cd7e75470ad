"""The launch code against a stub of the CUDA driver (tests/stubdriver): what reaches it is what the kernels want, and
what they compute of it is right."""

import pytest
import stubdriver

from gpuconv import emulator
from gpuconv.problem import DIRECTIONS

reason = stubdriver.why_not(runtime=False)
pytestmark = pytest.mark.skipif(reason is not None, reason=f"no stub of the driver: {reason}")
FAMILIES = {"cells", "gather", "hopper", "packed_runs", "patches", "planes", "pointwise", "stem", "taps", "window"}
# Of few channels, whose grad_input is for `cells`; and of forward and grad_input alone.
LACKING = {
    **{family: {"grad_input"} for family in ("packed_runs", "patches", "stem")},
    "cells": {"grad_weight"}, "hopper": {"grad_weight"},
}  # fmt: skip


@pytest.mark.skipif(emulator.why_not() is not None, reason=f"no launch can be executed: {emulator.why_not()}")
def test_every_family_gives_the_driver_what_its_kernels_want_either_way(clean_environment: dict[str, str]) -> None:
    *found, scalars, tensors, blocks = stubdriver.run("driven_alone.py", clean_environment, "90,80", False)
    assert [one for one in found if one["wrong"] or not one["error"] <= 1] == []
    assert {one["family"] for one in found} == {*FAMILIES, "activations"}
    assert {one["dtype"].removeprefix("torch.") for one in found} == {"float16", "bfloat16", "float32", "float64"}
    assert {one["gpu"] for one in found} == {"H100", "A100"}
    for gpu, families in {"H100": FAMILIES, "A100": FAMILIES - {"hopper", "window", "pointwise"}}.items():
        for family in families:
            directions = {one["what"].split()[0] for one in found if (one["family"], one["gpu"]) == (family, gpu)}
            assert directions == {*DIRECTIONS} - LACKING.get(family, set())
    for split in ("grad_weight split", "grad_input split", "forward split"):
        assert any(one["what"] == split for one in found)
    # Planted: each is seen in what reaches the driver, and in what is computed.
    assert "the short way gives the kernel" in scalars["wrong"][-1] and "bounds" in scalars["wrong"][0]
    assert "the short way gives the kernel" in tensors["wrong"][0] and not tensors["error"] <= 1
    assert "a grid of" in blocks["wrong"][0] and not blocks["error"] <= 1
    assert any(one["shared"] > 48 << 10 for one in found) and any(one["wide"] for one in found)


# By the numbers of cuda.h.
OK, VALUE, IMAGE, CONTEXT, BINARY, HANDLE, NOT_FOUND, RESOURCES, CAPTURE = 0, 1, 200, 201, 209, 400, 500, 701, 900
REFUSED = {
    "load without a context": CONTEXT,
    "nothing wrong": OK,
    "launch in a thread without a context": CONTEXT,
    "launch on another device": HANDLE,
    "launch of another device's kernel": HANDLE,
    "a stream of another device": HANDLE,
    "memory of another device": VALUE,
    "no block": VALUE,
    "too many blocks": VALUE,
    "too many rows of blocks": VALUE,
    "too many threads": VALUE,
    "not the block that it was compiled for": VALUE,
    "the block that it was compiled for": OK,
    "more than the largest block": VALUE,
    "too many registers": RESOURCES,
    "shared memory without asking": VALUE,
    "asking for too much": VALUE,
    "asking": OK,
    "shared memory that was asked for": OK,
    "shared memory beyond": VALUE,
    "shared memory that another user of the function gave back": VALUE,
    "no such kernel": NOT_FOUND,
    "no cubin": IMAGE,
    "a cubin for another GPU": BINARY,
    "memory of the host": VALUE,
    "a descriptor": OK,
    "a descriptor of memory that is not aligned": VALUE,
    "a descriptor of rows that are not aligned": VALUE,
    "a descriptor with a box that is too large": VALUE,
    "a descriptor with a box of no whole 16 bytes": VALUE,
    "a descriptor with a box beyond its swizzle": VALUE,
    "a descriptor of every ninth element": VALUE,
    "load during a capture": CAPTURE,
    "memory during a capture": CAPTURE,
    "launch during a capture": OK,
    "load during a capture, relaxed": OK,
    "load after a capture": OK,
    "a kernel whose module is gone": HANDLE,
}


def test_the_stub_refuses_what_a_driver_refuses(clean_environment: dict[str, str]) -> None:
    found = stubdriver.run("refused.py", clean_environment, "90,80", False)
    assert {what: error for what, error, _ in found} == REFUSED
    assert all((error == OK) == (words == "") for _, error, words in found)
