"""What a virtual GPU has run, whoever launched it."""

import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpuconv.emulator.counters import Counters
    from gpuconv.emulator.program import Program

SCHEDULES = ("early", "late", "random")


def check_schedule(schedule: str) -> None:
    """Raises ValueError unless it is one of `SCHEDULES`."""
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, but got {schedule!r}")


class Runs:
    """The launches of a virtual GPU, one after the other, and what each counted."""

    def __init__(self, schedule: str, seed: int, checks: bool, keeps: bool = True) -> None:
        """schedule, seed, checks: of every run, see `Program.run`. keeps: what it counted."""
        check_schedule(schedule)
        self._how: dict[str, Any] = {"schedule": schedule, "seed": seed, "checks": checks}
        self._keeps = keeps
        self._one_at_a_time = threading.Lock()
        self._ran: list[tuple[Any, Counters]] = []  # whose launch it was, for whoever wants to find it again

    @property
    def launches(self) -> list[str]:
        """The names of the kernels that were launched, in order."""
        return [counters.kernel for _, counters in self._ran]

    def counters(self) -> "list[Counters]":
        """What each launch counted, in order."""
        return [counters for _, counters in self._ran]

    def execute(
        self, program: "Program", grid: Any, block: Any, shared: int, args: Any, of: Any = None, **more: Any
    ) -> None:
        """Run a program with these arguments of `Program.run`. Raises EmulationError for what is wrong with it."""
        with self._one_at_a_time:
            counted = program.run(grid, block, shared, args, **more, **self._how)
            if self._keeps:
                self._ran.append((of, counted))
