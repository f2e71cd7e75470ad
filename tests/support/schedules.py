"""The schedules of the emulator under which a kernel must give the same bits."""

from typing import NamedTuple


class Schedule(NamedTuple):
    """When asynchronous work is done, and in which order warps and blocks run."""

    name: str
    seed: int = 0


SCHEDULES = (Schedule("early"), Schedule("late"), Schedule("random", 1), Schedule("random", 2))
