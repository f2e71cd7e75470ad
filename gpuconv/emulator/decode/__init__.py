"""Decoding: a parsed entry of PTX becomes the instructions that the core executes.

`base` has what all instructions need; each of the other modules registers the functions that decode its instructions.
"""

from gpuconv.emulator.decode import arithmetic, control, matrix, memory
from gpuconv.emulator.decode.base import Code, Decoding
from gpuconv.emulator.ptx import Entry

__all__ = ["arithmetic", "control", "decode", "matrix", "memory"]


def decode(entry: Entry) -> Code:
    """Decode an entry. Raises UnknownInstruction, which names the instruction and its line."""
    return Decoding(entry).code()
