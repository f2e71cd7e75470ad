"""TensorMap: the driver's rules for descriptors of the copy engine, and the 128 bytes."""

import struct
from typing import Any

import pytest

from gpuconv.emulator.tensor_map import ELEMENT_TYPES, TensorMap

GOOD: dict[str, Any] = {
    "address": 0x7000, "element_type": "bf16", "sizes": (72, 40, 3), "strides": (144, 5760), "box": (64, 8, 1),
    "swizzle": 128, "name": "kernel: x",
}  # fmt: skip


def test_bytes_hold_the_fields_in_order() -> None:
    made = TensorMap(**GOOD, element_strides=(1, 2, 1), fill="nan")
    fields = struct.unpack("<QI5I5I5I4B5Q8s4x", bytes(made))
    assert len(bytes(made)) == 128
    assert fields[:2] == (0x7000, 2)  # the rank is held less one
    assert fields[2:7] == (64, 8, 1, 0, 0)  # box
    assert fields[7:12] == (72, 40, 3, 0, 0)  # sizes
    assert fields[12:17] == (1, 2, 1, 0, 0)  # element strides
    assert fields[17:21] == (10, 0, 3, 1)  # bfloat16, no interleave, 128 bytes, NaN
    assert fields[21:26] == (144, 5760, 0, 0, 0) and bytes(made)[116:124] == fields[26] == b"GPUCONVT"


def test_element_types_are_numbered_as_in_ptx() -> None:
    for number, (name, size) in enumerate(ELEMENT_TYPES.items()):
        made = TensorMap(0x100, name, (64,), (), (16,))
        assert bytes(made)[72] == number and made.element_bytes == size
    assert list(ELEMENT_TYPES).index("bf16") == 10 and list(ELEMENT_TYPES).index("tf32.ftz") == 12


def test_the_largest_size_and_stride_are_held() -> None:
    made = TensorMap(0x100, "u8", (2**32, 2), (2**40 - 16,), (256, 2))
    assert struct.unpack_from("<2I", bytes(made), 32) == (0, 2)  # 2³² is 0 in the field's 32 bits
    assert struct.unpack_from("<Q", bytes(made), 76) == (2**40 - 16,)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"element_type": "f8"}, "element_type must be one of u8, .*, but got 'f8'"),
        ({"sizes": (), "strides": (), "box": ()}, r"sizes must be 1 to 5 \(.*\), but got 0"),
        ({"sizes": (2,) * 6, "strides": (16,) * 5, "box": (8,) * 6}, "sizes must be 1 to 5 .*, but got 6"),
        ({"strides": (144,)}, r"strides must be 2 for 3 sizes, but got \(144,\)"),
        ({"box": (64, 8)}, r"box must be 3 for 3 sizes, but got \(64, 8\)"),
        ({"element_strides": (1,)}, r"element_strides must be 3 for 3 sizes"),
        ({"address": 0x7008}, "address must be a multiple of 16 bytes, but got 0x7008"),
        ({"address": 0x7010, "interleave": 32, "swizzle": 32}, "address must be a multiple of 32 bytes"),
        ({"address": 0}, "address must be"),
        ({"sizes": (72, 0, 3)}, r"sizes must each be 1 to 4294967296, but got \(72, 0, 3\)"),
        ({"sizes": (72, 2**32 + 1, 3)}, "sizes must each be"),
        ({"strides": (144, 5768)}, r"the stride of axis 2 must be a multiple of 16 bytes, but got \(144, 5768\)"),
        ({"strides": (144, 2**40)}, "strides must each be 0 to 1099511627775"),
        ({"strides": (144, 5760), "interleave": 32, "swizzle": 32}, "the stride of axis 1 must be a multiple of 32"),
        ({"box": (64, 257, 1)}, r"box must each be 1 to 256, but got \(64, 257, 1\)"),
        ({"box": (64, 0, 1)}, "box must each be 1 to 256"),
        ({"box": (12, 8, 1)}, r"the box's axis 0 must be a multiple of 16 bytes, but got 24: \(12, 8, 1\)"),
        ({"swizzle": 64}, "the box's axis 0 must be at most the swizzle's 64 bytes, but got 128"),
        ({"swizzle": 96}, "swizzle must be one of 0, 32, 64, 128, but got 96"),
        ({"element_strides": (1, 9, 1)}, r"element_strides must each be 1 to 8, but got \(1, 9, 1\)"),
        (
            {"interleave": 16, "sizes": (72, 40), "strides": (144,), "box": (8, 8)},
            r"sizes must be 1 to 5 \(with interleave 3 to 5\), but got 2",
        ),
        ({"interleave": 32, "strides": (160, 5760)}, "swizzle must be 32 bytes with interleave 32, but got 128"),
        ({"element_type": "u16", "fill": "nan"}, "fill 'nan' is for floating-point types, not u16"),
        ({"fill": "ones"}, "fill must be one of zero, nan, but got 'ones'"),
    ],
)  # fmt: skip
def test_what_the_driver_refuses_names_the_argument(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^kernel: x: {message}"):
        TensorMap(**GOOD | wrong)
