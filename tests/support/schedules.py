"""The schedules under which what the emulator runs is to give the same bits."""

from typing import NamedTuple


class Schedule(NamedTuple):
    """When asynchronous work is done, and in which order warps and blocks run."""

    name: str
    seed: int = 0


SCHEDULES = (Schedule("early"), Schedule("late"), Schedule("random", 1), Schedule("random", 2))
