"""The errors of the emulator."""


class EmulatorUnavailable(RuntimeError):
    """The emulator cannot run on this machine; the message says why."""


class EmulationError(RuntimeError):
    """A fault in a kernel, or an instruction that the emulator does not know.

    kind: "bounds", "alignment", "uninitialised", "race", "barrier", "deadlock", "copy engine", "wgmma",
    "unknown instruction" or "trap". kernel: its name. block, thread: where, as (x, y, z); thread is None where it was
    no single one's. ptx_line: the line of the PTX, from 1. source: "file:line" of the source that it was compiled from,
    where that is known.
    """

    def __init__(
        self,
        message: str,
        *,
        kind: str,
        kernel: str = "",
        block: tuple[int, int, int] | None = None,
        thread: tuple[int, int, int] | None = None,
        ptx_line: int = 0,
        source: str | None = None,
    ) -> None:
        super().__init__(message)
        self.kind, self.kernel, self.block, self.thread = kind, kernel, block, thread
        self.ptx_line, self.source = ptx_line, source


class UnknownInstruction(EmulationError):
    """PTX that the emulator does not know; the message names the instruction and its line."""

    def __init__(self, message: str, *, kernel: str = "", ptx_line: int = 0, source: str | None = None) -> None:
        super().__init__(message, kind="unknown instruction", kernel=kernel, ptx_line=ptx_line, source=source)
