"""Mistakes such as kernels have, planted in the text of CUDA C: for the host check and the emulator to find."""

from typing import NamedTuple

from gpuconv.backends.cuda.launch import source


class Fault(NamedTuple):
    """A mistake in a kernel."""

    kind: str  # direction and family
    right: str  # what the text says
    wrong: str  # what it is made to say
    emulated: str  # the check of the emulator that finds it
    mode: str = ""  # of the host check, which finds it …
    complaint: str = ""  # … with these words

    def planted(self, file: str) -> str:
        """The text of a kernel file with the mistake."""
        text = source(file)
        assert self.right in text, f"the kernels no longer contain {self.right!r}"
        return text.replace(self.right, self.wrong)


FAULTS = {
    # SIMT: a barrier, an index, a mask, a bound, an alignment; and shared memory that nobody writes.
    "removed-barrier": Fault("forward-simt", "    __syncthreads();\n", "", "race", "thread", "data race"),
    "off-by-one-read": Fault(
        "forward-simt", "unsigned(at.h) < unsigned(size[1])", "unsigned(at.h) <= unsigned(size[1])", "bounds",
        "address", "heap-buffer-overflow",
    ),
    "unmasked-store": Fault(
        "forward-simt", "    if (m >= pixels) continue;\n", "", "bounds", "address", "heap-buffer-overflow"
    ),
    "step-beyond-shared-memory": Fault(
        "forward-simt", "for (int k = 0; k < BK; ++k)", "for (int k = 0; k <= BK; ++k)", "race", "address",
        "use-after-poison",
    ),
    "misaligned-vector": Fault(
        "forward-simt", "Vector<TYPE>*>(p + i)", "Vector<TYPE>*>(p + i + 1)", "alignment", "address", "misaligned"
    ),
    "not-written": Fault(
        "forward-simt", "stage.columns[column_first + k][column] = widen(b_column[k]);",
        "if (column_first + k) stage.columns[column_first + k][column] = widen(b_column[k]);", "uninitialised",
    ),
    # Banded filters.
    "missing-barrier-of-bands": Fault(
        "grad_weight-banded", "__syncthreads();  // window i has arrived", "//", "race", "thread", "data race"
    ),
    "one-row-too-many": Fault(
        "grad_input-banded", "h >= height", "h > height", "bounds", "address", "AddressSanitizer"
    ),
    # Tensor cores.
    "missing-barrier": Fault(
        "forward-halo", "__syncthreads();  // step i + 1 has arrived", "//", "race", "thread",
        "data race",
    ),
    "one-column-block-too-many": Fault(
        "grad_input-tensor", "column >= columns", "column > columns", "bounds", "address", "AddressSanitizer"
    ),
    "one-copy-too-early": Fault(
        "forward-tensor", "i < STAGES - 1; ++i", "i < STAGES + 1; ++i", "race", "address", "same place is under way"
    ),
    "not-swizzled": Fault(
        "grad_weight-tensor", "chunk ^ (row / (8 / SWIZZLED) % SWIZZLED)", "chunk", "shared passes", "address",
        "share a bank",
    ),
    "missing-wait": Fault("forward-halo", "wait_for_groups<STAGES - 2>();", "wait_for_groups<STAGES - 1>();", "race"),
}  # fmt: skip


def of(family: str) -> dict[str, Fault]:
    """The mistakes planted in a family that the host check finds."""
    return {name: fault for name, fault in FAULTS.items() if fault.kind.endswith(family) and fault.mode}
