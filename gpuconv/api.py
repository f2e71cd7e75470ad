"""The public names of gpuconv."""

import os

from gpuconv import arrays, backends, emulator, functional, nn, ops
from gpuconv.backends import BackendUnavailable, use_backend
from gpuconv.functional import conv1d, conv2d, conv3d, conv_transpose1d, conv_transpose2d, conv_transpose3d
from gpuconv.models.convert import ConversionReport, convert, patch, revert
from gpuconv.models.fuse import FusionReport, fuse
from gpuconv.models.warmup import warmup
from gpuconv.ops import flops
from gpuconv.problem import ConvProblem

if os.environ.get("GPUCONV_EMULATE"):
    from gpuconv.emulator import device

    device.from_environment()

__all__ = [
    "BackendUnavailable",
    "ConvProblem",
    "ConversionReport",
    "FusionReport",
    "arrays",
    "backends",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "convert",
    "emulator",
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
