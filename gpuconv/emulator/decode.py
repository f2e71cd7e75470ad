"""An entry of PTX as the core executes it."""

from gpuconv.emulator import decode_arithmetic, decode_control, decode_matrix, decode_memory
from gpuconv.emulator.decoding import Code, Decoding
from gpuconv.emulator.ptx import Entry

# Each registers what decodes its instructions.
__all__ = ["decode", "decode_arithmetic", "decode_control", "decode_matrix", "decode_memory"]


def decode(entry: Entry) -> Code:
    """Decode an entry. Raises UnknownInstruction, which names the instruction and its line."""
    return Decoding(entry).code()
