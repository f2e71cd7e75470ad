"""`Tile`: what one program of a kernel computes. The planner chooses one; tables on disk hold them."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Tile:
    """The work of one program: rows × columns of the result, `depth` terms of the sum in each step of its loop.

    Rows, columns and terms are those of `ConvProblem.view`, for one filter tap. `splits` programs share one sum. Where
    the rows are a window of the image that is fetched once, with its margin, for all filter taps of a plane, `windows`
    and `halo` give its sizes.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    splits: int = 1
    kernel: str = "gather"  # the family's name, where a backend has several
    windows: int = 0  # of a group; 0: rows follow each other, and are fetched for each tap
    halo: int = 0  # pixels of a window with its margin
    width: int = 0  # of a window, where a family lets it be chosen
    persistent: int = 0  # programs that take tiles in turn, of each phase and split; 0: one program for each tile
    addressed: int = 0  # elements of a step that are fetched one by one, each with an address of its own
    taps: int = 1  # of the filter, below each other, that a program of grad_weight sums at once
    # The operands that are copied, channels last, before its kernel runs, and "result" if that is copied from channels
    # last after it: "input", "input+weight", "grad_output+weight+result", …
    packs: str = ""
    phases: int = 1  # neighbours along a row of a strided grad_input, that a program computes one after the other

    @property
    def family(self) -> str:
        """Its kind of kernels: 'window', or 'packed window' where copies are made."""
        return f"packed {self.kernel}" if self.packs else self.kernel

    @property
    def without_packs(self) -> "Tile":
        """The tile of the kernel that reads the copies."""
        return dataclasses.replace(self, packs="")

    @property
    def sizes(self) -> str:
        """Sizes, warps and stages, in a few words."""
        splits = f", {self.splits} splits" if self.splits > 1 else ""
        taps = f", {self.taps} taps" if self.taps > 1 else ""
        phases = f", {self.phases} phases" if self.phases > 1 else ""
        return (
            f"{self.rows}×{self.columns}×{self.depth}, {self.warps} warps, {self.stages} stages{taps}{phases}{splits}"
        )

    def __str__(self) -> str:
        return f"{self.family} {self.sizes}"
