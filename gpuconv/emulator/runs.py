"""The runs of a virtual GPU, and their schedules."""

import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpuconv.emulator.counters import Counters
    from gpuconv.emulator.program import Program

SCHEDULES = ("early", "late", "random")


def check_schedule(schedule: str) -> None:
    """Raise ValueError unless `schedule` is one of `SCHEDULES`."""
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, but got {schedule!r}")


class Runs:
    """The launches of a virtual GPU, one after the other, and their counters."""

    def __init__(self, schedule: str, seed: int, checks: bool, keeps: bool = True) -> None:
        """schedule, seed, checks: of every run, see `Program.run`. keeps: keep the counters."""
        check_schedule(schedule)
        self._how: dict[str, Any] = {"schedule": schedule, "seed": seed, "checks": checks}
        self._keeps = keeps
        self._one_at_a_time = threading.Lock()
        self._ran: list[tuple[Any, Counters]] = []  # the object that was launched, and the counters

    @property
    def launches(self) -> list[str]:
        """The names of the kernels that were launched, in order."""
        return [counters.kernel for _, counters in self._ran]

    def counters(self) -> "list[Counters]":
        """The counters of each launch, in order."""
        return [counters for _, counters in self._ran]

    def execute(
        self, program: "Program", grid: Any, block: Any, shared: int, args: Any, of: Any = None, **more: Any
    ) -> None:
        """Run a program with these arguments of `Program.run`. Raises EmulationError for a fault in it.

        of: the object that was launched, a Triton kernel say.
        """
        with self._one_at_a_time:
            counted = program.run(grid, block, shared, args, **more, **self._how)
            if self._keeps:
                self._ran.append((of, counted))
