"""A tensor map: a descriptor of the copy engine (TMA), made on the host by the rules of cuTensorMapEncodeTiled.

Axis 0 is the innermost one, as in CUDA: its elements lie side by side, and `strides` begins with axis 1's.
"""

import dataclasses
import struct

# In the order of tensormap.replace's .elemtype: the bytes of one element.
ELEMENT_TYPES = {
    "u8": 1, "u16": 2, "u32": 4, "s32": 4, "u64": 8, "s64": 8, "f16": 2, "f32": 4, "f32.ftz": 4, "f64": 8, "bf16": 2,
    "tf32": 4, "tf32.ftz": 4,
}  # fmt: skip
SWIZZLES = (0, 32, 64, 128)  # bytes that the pattern spans, for swizzle modes 0, 1, 2, 3
INTERLEAVES = (0, 16, 32)  # bytes of a slice of channels
FILLS = ("zero", "nan")
MAGIC = b"GPUCONVT"  # in the last bytes, so that other bytes are not taken for a descriptor


@dataclasses.dataclass(frozen=True)
class TensorMap:
    """A TMA descriptor; `bytes(map)` are the 128 bytes that the emulator reads.

    Raises ValueError for what cuTensorMapEncodeTiled refuses; the message begins with `name`, that of the argument.
    """

    address: int  # of the first element
    element_type: str  # one of ELEMENT_TYPES
    sizes: tuple[int, ...]  # elements of each axis
    strides: tuple[int, ...]  # bytes, of axes 1, 2, …: one fewer than sizes
    box: tuple[int, ...]  # elements that one copy takes of each axis
    element_strides: tuple[int, ...] | None = None  # one element in so many is copied; None: all
    interleave: int = 0  # 0, 16 or 32 bytes
    swizzle: int = 0  # 0, 32, 64 or 128 bytes
    fill: str = "zero"  # or "nan": the value of elements outside the tensor
    name: str = "tensor_map"

    def __post_init__(self) -> None:
        self._one_of("element_type", self.element_type, tuple(ELEMENT_TYPES))
        self._one_of("interleave", self.interleave, INTERLEAVES)
        self._one_of("swizzle", self.swizzle, SWIZZLES)
        self._one_of("fill", self.fill, FILLS)
        rank, aligned = len(self.sizes), 32 if self.interleave == 32 else 16
        self._hold(
            (3 if self.interleave else 1) <= rank <= 5,
            f"sizes must be 1 to 5 (with interleave 3 to 5), but got {rank}: {self.sizes}",
        )
        lengths = {"strides": rank - 1, "box": rank, "element_strides": rank}
        for what, length in lengths.items():
            given = getattr(self, what)
            if given is not None:
                self._hold(len(given) == length, f"{what} must be {length} for {rank} sizes, but got {given}")
        self._hold(
            self.address > 0 and self.address % aligned == 0,
            f"address must be a multiple of {aligned} bytes, but got {self.address:#x}",
        )
        self._each("sizes", self.sizes, 1, 2**32)
        self._each("strides", self.strides, 0, 2**40 - 1)
        self._each("box", self.box, 1, 256)
        self._each("element_strides", self.element_strides or (), 1, 8)
        for axis, stride in enumerate(self.strides, 1):
            self._hold(
                stride % aligned == 0,
                f"the stride of axis {axis} must be a multiple of {aligned} bytes, but got {self.strides}",
            )
        inner = self.box[0] * self.element_bytes
        if self.interleave:
            self._hold(
                self.interleave != 32 or self.swizzle == 32,
                f"swizzle must be 32 bytes with interleave 32, but got {self.swizzle}",
            )
        else:
            self._hold(inner % 16 == 0, f"the box's axis 0 must be a multiple of 16 bytes, but got {inner}: {self.box}")
            self._hold(
                not self.swizzle or inner <= self.swizzle,
                f"the box's axis 0 must be at most the swizzle's {self.swizzle} bytes, but got {inner}: {self.box}",
            )
        floating = "f" in self.element_type
        self._hold(self.fill != "nan" or floating, f"fill 'nan' is for floating-point types, not {self.element_type}")

    @property
    def element_bytes(self) -> int:
        """Bytes of one element."""
        return ELEMENT_TYPES[self.element_type]

    def __bytes__(self) -> bytes:
        rank = len(self.sizes)

        def five(values: tuple[int, ...]) -> tuple[int, ...]:
            return (*values, *(0,) * (5 - len(values)))

        return struct.pack(
            "<QI5I5I5I4B5Q8s4x",
            self.address,
            rank - 1,
            *five(self.box),
            *five(tuple(size & 0xFFFFFFFF for size in self.sizes)),
            *five(self.element_strides or (1,) * rank),
            tuple(ELEMENT_TYPES).index(self.element_type),
            INTERLEAVES.index(self.interleave),
            SWIZZLES.index(self.swizzle),
            FILLS.index(self.fill),
            *five(self.strides),
            MAGIC,
        )

    def _hold(self, so: bool, otherwise: str) -> None:
        if not so:
            raise ValueError(f"{self.name}: {otherwise}")

    def _one_of(self, what: str, value: object, known: tuple[object, ...]) -> None:
        self._hold(value in known, f"{what} must be one of {', '.join(map(str, known))}, but got {value!r}")

    def _each(self, what: str, values: tuple[int, ...], least: int, most: int) -> None:
        self._hold(
            all(least <= value <= most for value in values),
            f"{what} must each be {least} to {most}, but got {tuple(values)}",
        )
