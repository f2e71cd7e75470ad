"""Trials in a process of their own: a kernel that kills it, its GPU's context, or never ends costs no more than itself.

python -m gpuconv.checking.isolated DESCRIPTOR       # what is to be tried comes pickled on stdin
"""

import os
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator, Sequence
from multiprocessing.connection import Connection

import torch

from gpuconv import backends
from gpuconv.checking.self_test import Outcome, Trial, attempt

MOST_SECONDS = 180  # of a trial, compilation included
_TO_START = 300


def attempts(
    todo: Sequence[Trial],
    device: torch.device,
    specs: Sequence[str],
    most_seconds: float = MOST_SECONDS,
    processes: int = 1,
) -> Iterator[Outcome]:
    """The outcomes of `todo`, in order, by several processes at once, since most of the time goes into compiling.

    specs: backends that the processes have to load (`backends.load`). most_seconds: of a trial.
    """
    came: list[queue.SimpleQueue[Outcome | BaseException]] = [queue.SimpleQueue() for _ in range(processes)]
    enough = threading.Event()

    def work(share: int) -> None:
        outcomes = _in_turn(todo[share::processes], device, specs, most_seconds)
        try:
            for outcome in outcomes:
                came[share].put(outcome)
                if enough.is_set():
                    break
        except BaseException as error:
            came[share].put(error)
        finally:
            outcomes.close()

    for share in range(processes):
        threading.Thread(target=work, args=(share,), daemon=True).start()
    try:
        for i in range(len(todo)):
            outcome = came[i % processes].get()
            if isinstance(outcome, BaseException):
                raise outcome
            yield outcome
    finally:
        enough.set()


def _in_turn(
    todo: Sequence[Trial], device: torch.device, specs: Sequence[str], most_seconds: float
) -> Generator[Outcome, None, None]:
    """The outcomes of `todo`, in order.

    After a trial that kills its process the next is made for those that follow, without the rest of the same kernels.
    """
    deadly: dict[object, Outcome] = {}
    done = 0
    while done < len(todo):
        left = [(i, trial) for i, trial in enumerate(todo[done:], start=done) if trial.kernels not in deadly]
        came = _one_process([trial for _, trial in left], device, specs, most_seconds)
        for i, trial in left:
            while done < i:
                yield deadly[todo[done].kernels]
                done += 1
            outcome, alive = next(came)
            yield outcome
            done += 1
            if not alive and outcome.status == "not judged":  # nor would it answer another process
                yield from [outcome] * (len(todo) - done)
                return
            if not alive:
                deadly[trial.kernels] = outcome
                break
        else:
            while done < len(todo):
                yield deadly[todo[done].kernels]
                done += 1


def _one_process(
    todo: Sequence[Trial], device: torch.device, specs: Sequence[str], most_seconds: float
) -> Iterator[tuple[Outcome, bool]]:
    """Outcomes as they come, and whether the process can go on; the last of a process that ended is how it ended."""
    ours, theirs = os.pipe()
    command = [sys.executable, "-m", "gpuconv.checking.isolated", str(theirs)]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=(theirs,)) as child,
        Connection(ours, writable=False) as results,
    ):
        os.close(theirs)
        assert child.stdin is not None
        try:
            with child.stdin:
                pickle.dump((list(todo), device, list(specs)), child.stdin)
            if not results.poll(_TO_START):  # that it has begun
                raise RuntimeError(f"the process of the self-test has not started in {_TO_START} s")
            try:
                results.recv()
            except EOFError:
                raise RuntimeError(f"the process of the self-test ended as it started, status {child.wait()}") from None
            while True:
                try:
                    if not results.poll(most_seconds):
                        yield Outcome("failed", "ended", f"nothing came in {most_seconds:g} s", float("inf")), False
                        return
                    outcome = results.recv()
                except EOFError:
                    status = child.wait()
                    how = f"by signal {-status}" if status < 0 else f"with status {status}"
                    yield Outcome("failed", "ended", f"the process ended {how}", float("inf")), False
                    return
                yield outcome, not outcome.lost
                if outcome.lost:
                    return
        finally:
            child.kill()


def main() -> None:
    results = Connection(int(sys.argv[1]), readable=False)
    todo, device, specs = pickle.load(sys.stdin.buffer)
    for spec in specs:
        backends.load(spec)
    results.send("ready")
    for trial in todo:
        outcome = attempt(trial, device)
        results.send(outcome)
        if outcome.lost:
            os._exit(1)  # the driver has nothing to tidy up


if __name__ == "__main__":
    main()
