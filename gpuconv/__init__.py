"""gpuconv: convolutions for PyTorch whose kernels are written by hand.

    y = gpuconv.conv2d(input, weight, bias, stride=2, padding=1)        # torch.nn.functional.conv2d
    with gpuconv.use_backend("numpy"):                                  # any of gpuconv.backends.names()
        ...

    report = gpuconv.convert(model)                                     # any PyTorch model, in place

`gpuconv.functional` has the functions, `gpuconv.nn` the modules, `gpuconv.ops` the three ops beneath them;
`gpuconv.arrays` has the functions for NumPy and CuPy arrays.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"


def _is_the_command_line() -> bool:
    """Whether this process is `gpuconv …` or `python -m gpuconv …`.

    Some of its answers need no PyTorch, whose import takes more than a second: the version, help, completion of words.
    `gpuconv.cli.main` loads the rest when it knows the command.
    """
    program, words = sys.argv[0] if sys.argv else "", sys.orig_argv
    if program == "-m":  # whatever it is to be, it is just being looked for
        return ("-m", "gpuconv") in pairwise(words)
    return PurePath(program).name == "gpuconv" and program in words


if TYPE_CHECKING or not _is_the_command_line():
    from gpuconv.api import *  # noqa: F403
    from gpuconv.api import __all__ as __all__
else:

    def __getattr__(name: str) -> Any:
        """A public name, from `gpuconv.api`. Modules of this package are found by the import statement itself."""
        if not name.startswith("__") and find_spec(f"{__name__}.{name}") is None:
            api = vars(import_module("gpuconv.api"))
            if name in api:
                return api[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
