"""Options that several commands share, and what the words given for them stand for."""

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Annotated, ParamSpec, TypeVar

import torch
import typer

from gpuconv import backends, packages
from gpuconv.errors import UserError
from gpuconv.gpu import KNOWN, device_called
from gpuconv.planning import plan
from gpuconv.problem import DIRECTIONS
from gpuconv.text import did_you_mean

BACKENDS = f"{', '.join(backends.names())}, or package.module:Class for your own"

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else, on stdout.")]
Device = Annotated[
    str | None,
    typer.Option(show_default=False, help="cpu, cuda or cuda:N. Default: cuda where there is a GPU, else cpu."),
]
Directions = Annotated[
    list[str] | None,
    typer.Option("--direction", show_default=False, help=f"{', '.join(DIRECTIONS)}. Repeatable. Default: all."),
]
On = Annotated[
    str | None,
    typer.Option(
        "--on", show_default=False, help=f"A GPU to emulate on the CPU: {', '.join(KNOWN)}, or sm_90 and so on."
    ),
]

_P = ParamSpec("_P")
_T = TypeVar("_T")
_Name = TypeVar("_Name", bound=str)


def one_of(option: str, word: str, known: Collection[_Name]) -> _Name:
    """The known name that `word` is. Raises UserError, with similar names, for another word."""
    for name in known:
        if name == word:
            return name
    raise UserError(f"{option} must be one of {', '.join(known)}, but got {word!r}{did_you_mean(word, known)}")


def each_of(option: str, given: list[str] | None, known: Collection[_Name]) -> list[_Name]:
    """The known names that were given for a repeatable option, commas allowed; all of them where none was."""
    return [one_of(option, word, known) for text in given or known for word in text.split(",")]


def checked(find: Callable[_P, _T], *arguments: _P.args, **named: _P.kwargs) -> _T:
    """find(…), where a ValueError, such as for a wrong name, is the user's error."""
    try:
        return find(*arguments, **named)
    except ValueError as error:
        raise UserError(str(error)) from error


def usable_device(name: str | None) -> torch.device:
    """The device called `name`, or the default. Raises UserError for one that cannot be used here."""
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    device = checked(device_called, name)
    try:
        torch.empty(1, device=device)
    except Exception as error:  # whatever PyTorch raises for a device that it cannot use
        raise UserError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def device_to_time(name: str | None) -> torch.device:
    """`usable_device(name)`. Raises UserError where the CPU stands for an emulated GPU, whose times say nothing."""
    device = usable_device(name)
    if plan.emulated(device):
        raise UserError("nothing can be timed on a GPU that is emulated: unset GPUCONV_EMULATE")
    return device


@contextmanager
def emulated(name: str | None, device: str | None, triton: bool = False) -> Iterator[None]:
    """Within this context the GPU called `name` is emulated, if one is named. Raises UserError where it cannot be.

    triton: for Triton kernels that are not gpuconv's, too.
    """
    if name is None:
        yield
        return
    from gpuconv import emulator
    from gpuconv.emulator.device import unrecorded

    if device not in (None, "cpu"):
        raise UserError(f"--on emulates a GPU on the CPU, and --device is {device!r}: leave one of them out")
    with ExitStack() as stack:
        try:
            stack.enter_context(unrecorded(name, "--on"))
            if triton and packages.installed("triton"):
                stack.enter_context(emulator.triton_gpu(name))
        except (ValueError, RuntimeError) as error:
            raise UserError(str(error)) from error
        yield
