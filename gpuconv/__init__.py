"""gpuconv: convolutions for PyTorch whose kernels are written by hand.

    y = gpuconv.conv2d(input, weight, bias, stride=2, padding=1)        # torch.nn.functional.conv2d
    with gpuconv.use_backend("numpy"):                                  # any of gpuconv.backends.names()
        ...

    report = gpuconv.convert(model)                                     # any PyTorch model, in place

`gpuconv.functional` has the functions, `gpuconv.nn` the modules, `gpuconv.ops` the three ops beneath them;
`gpuconv.arrays` has the functions for NumPy and CuPy arrays.
"""

from gpuconv import arrays, backends, flops, functional, nn, ops
from gpuconv.backends import BackendUnavailable, use_backend
from gpuconv.dropin import Report, convert, patch, revert
from gpuconv.functional import conv1d, conv2d, conv3d, conv_transpose1d, conv_transpose2d, conv_transpose3d
from gpuconv.fusion import FusionReport, fuse
from gpuconv.problem import ConvProblem
from gpuconv.warm import warmup

__version__ = "0.1.0"
__all__ = [
    "BackendUnavailable",
    "ConvProblem",
    "FusionReport",
    "Report",
    "arrays",
    "backends",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "convert",
    "flops",
    "functional",
    "fuse",
    "nn",
    "ops",
    "patch",
    "revert",
    "use_backend",
    "warmup",
]
