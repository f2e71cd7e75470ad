"""Trials of the self-test in processes of their own, so that a kernel that crashes or never ends spoils no other trial.

python -m gpuconv.checking.isolated DESCRIPTOR       # the trials come pickled on stdin
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

MOST_SECONDS = 180  # for one trial, compilation included
_MOST_SECONDS_TO_START = 300
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # of several processes that share the cores


def attempts(
    trials: Sequence[Trial],
    device: torch.device,
    specs: Sequence[str],
    most_seconds: float = MOST_SECONDS,
    processes: int = 1,
) -> Iterator[Outcome]:
    """The outcomes of the trials, in order, from several processes at once, since most of the time goes into compiling.

    specs: backends that the processes have to load (`backends.load`). most_seconds: for one trial.
    """
    results: list[queue.SimpleQueue[Outcome | BaseException]] = [queue.SimpleQueue() for _ in range(processes)]
    enough = threading.Event()

    environment = {**os.environ, **(_ONE_THREAD if processes > 1 else {})}

    def work(share: int) -> None:
        outcomes = _in_turn(trials[share::processes], device, specs, most_seconds, environment)
        try:
            for outcome in outcomes:
                results[share].put(outcome)
                if enough.is_set():
                    break
        except BaseException as error:
            results[share].put(error)
        finally:
            outcomes.close()

    for share in range(processes):
        threading.Thread(target=work, args=(share,), daemon=True).start()
    try:
        for i in range(len(trials)):
            outcome = results[i % processes].get()
            if isinstance(outcome, BaseException):
                raise outcome
            yield outcome
    finally:
        enough.set()


def _in_turn(
    trials: Sequence[Trial],
    device: torch.device,
    specs: Sequence[str],
    most_seconds: float,
    environment: dict[str, str],
) -> Generator[Outcome, None, None]:
    """The outcomes of the trials, in order.

    After a trial that kills its process a new process takes the trials that follow, without those of the same kernels.
    """
    deadly: dict[object, Outcome] = {}
    done = 0
    while done < len(trials):
        left = [(i, trial) for i, trial in enumerate(trials[done:], start=done) if trial.kernels not in deadly]
        outcomes = _one_process([trial for _, trial in left], device, specs, most_seconds, environment)
        for i, trial in left:
            while done < i:
                yield deadly[trials[done].kernels]
                done += 1
            outcome, alive = next(outcomes)
            yield outcome
            done += 1
            if not alive and outcome.status == "not judged":  # nor would it answer another process
                yield from [outcome] * (len(trials) - done)
                return
            if not alive:
                deadly[trial.kernels] = outcome
                break
        else:
            while done < len(trials):
                yield deadly[trials[done].kernels]
                done += 1


def _one_process(
    trials: Sequence[Trial],
    device: torch.device,
    specs: Sequence[str],
    most_seconds: float,
    environment: dict[str, str],
) -> Iterator[tuple[Outcome, bool]]:
    """Outcomes as they come, each with whether the process can go on; the last one says how the process ended."""
    ours, theirs = os.pipe()
    command = [sys.executable, "-m", "gpuconv.checking.isolated", str(theirs)]
    with (
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=(theirs,), env=environment
        ) as child,
        Connection(ours, writable=False) as results,
    ):
        os.close(theirs)
        assert child.stdin is not None
        try:
            with child.stdin:
                pickle.dump((list(trials), device, list(specs)), child.stdin)
            if not results.poll(_MOST_SECONDS_TO_START):  # that it has begun
                raise RuntimeError(f"the process of the self-test has not started in {_MOST_SECONDS_TO_START} s")
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
    """The child process: try what comes on stdin, and send the outcomes."""
    results = Connection(int(sys.argv[1]), readable=False)
    trials, device, specs = pickle.load(sys.stdin.buffer)
    for spec in specs:
        backends.load(spec)
    results.send("ready")
    for trial in trials:
        outcome = attempt(trial, device)
        results.send(outcome)
        if outcome.lost:
            os._exit(1)  # the driver has nothing to tidy up


if __name__ == "__main__":
    main()
