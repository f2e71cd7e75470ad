"""What the steps of the ladder share: the convolution, its check, and the table of counters.

    python docs/examples/ladder/step.py    all steps beside each other

A step is a file whose name begins with a number. It has one kernel, and `convolve(x, w, y)`, which launches it. Tensors
lie in memory in the order of their letters, the last one fastest: x[N, H, W, C], w[K, R, S, C] and y[N, P, Q, K].
"""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from triton.errors import TritonError

from gpuconv import reference
from gpuconv.emulator import Counters, EmulationError, triton_gpu, why_not
from gpuconv.problem import ConvProblem

GPU = "H100"
N, H, W, C = 1, 16, 16, 64
K, R, S = 64, 3, 3  # filters of R × S taps; padding R // 2 and S // 2, so that P = H and Q = W
# Before 3.8, Triton leaves out a fence between copies (cp.async) and products (wgmma): a race, see gpuconv doctor.
FENCED = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 8)


class Wrong(Exception):
    """An element of the result lies outside its bound."""


class Measured(NamedTuple):
    """What a step did on the virtual GPU."""

    error: float  # the largest, as a fraction of the oracle's bound: right up to 1
    launches: list[Counters]

    def total(self, name: str) -> int:
        """A counter, over all launches."""
        return sum(getattr(counters, name) for counters in self.launches)

    def column(self) -> dict[str, str]:
        """The step's column of the table."""
        counts = {
            "instructions": self.total("instructions"),
            "global sectors": self.total("global_sectors"),
            "  at least": self.total("global_sectors_least"),
            "copy engine bytes": self.total("tma_bytes"),
            "global bytes, both ways": 32 * self.total("global_sectors") + self.total("tma_bytes"),
            "shared memory passes": self.total("shared_passes"),
            "tensor core operations": self.total("tensor_operations"),
        }
        return {name: f"{count:,}" for name, count in counts.items()} | {"error / bound": f"{self.error:.2f}"}


def files() -> list[Path]:
    """The steps, in order; one of your own may be called 5_mine.py."""
    return sorted(Path(__file__).resolve().parent.glob("[0-9]*.py"))


def measured(convolve: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]) -> Measured:
    """Run a step on the virtual GPU and hold its result against the oracle.

    Raises Wrong for a wrong result, EmulationError for what no kernel may do.
    """
    torch.manual_seed(0)
    x, w = torch.randn(N, H, W, C).bfloat16(), torch.randn(K, R, S, C).bfloat16()
    y = torch.full((N, H, W, K), torch.nan, dtype=torch.bfloat16)  # what nobody writes stays NaN
    with triton_gpu(GPU, checks=FENCED) as gpu:
        convolve(x, w, y)
    x, w, got = (t.movedim(-1, 1) for t in (x, w, y))  # channels second, as PyTorch has them
    problem = ConvProblem.of(x.shape, w.shape, padding=(R // 2, S // 2), dtype=y.dtype)
    exact = reference.forward(problem, reference.as_numpy(x), reference.as_numpy(w))
    error, at = reference.worst_violation(got, exact)
    if not error <= 1:
        n, k, p, q = at
        raise Wrong(
            f"y[n={n}, p={p}, q={q}, k={k}] is {float(got[at]):.4g} and should be {exact.value[at]:.4g}: "
            f"{error:.3g} times the error that is allowed"
        )
    return Measured(error, gpu.counters())


def show(*steps: Path) -> dict[str, Measured]:
    """Run these steps, print what they count beside each other, and return those that are right."""
    if why_not() is not None:
        sys.exit(f"the virtual GPU does not run here: {why_not()}")
    print(f"x[{N}, {H}, {W}, {C}], w[{K}, {R}, {S}, {C}] → y[{N}, {H}, {W}, {K}], bfloat16, on a virtual {GPU}\n")
    if not FENCED:
        print(f"races are not looked for: Triton {triton.__version__} has one of its own, in step 3\n")
    right = {}
    for file in steps:
        names = runpy.run_path(str(file))
        print((names["__doc__"] or file.stem).partition("\n")[0])
        try:
            right[file.stem] = measured(names["convolve"])
        except (Wrong, EmulationError, TritonError) as error:
            print(f"\n{file.name}: {error}\n")
    columns = [ran.column() for ran in right.values()]
    print("\n" + 24 * " " + "".join(f"{name:>17}" for name in right))
    for row in columns[0] if columns else ():
        print(f"{row:24}" + "".join(f"{column[row]:>17}" for column in columns))
    return right


def main(file: str) -> None:
    """What a step does when it is run by itself: it stands beside the step before, and names its costliest lines."""
    step, steps = Path(file).resolve(), files()
    at = steps.index(step) if step in steps else 0
    right = show(*steps[max(0, at - 1) : at], step)
    if step.stem not in right:
        sys.exit(1)
    for counters in right[step.stem].launches:
        print(f"\n{counters.text(most=4)}")


if __name__ == "__main__":
    sys.exit(len(show(*files())) < len(files()))
