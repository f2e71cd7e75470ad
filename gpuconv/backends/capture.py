"""Errors for what cannot be done while a CUDA graph is captured."""

import torch


def refuse_capture(kernel: str) -> None:
    """Raise `not_loaded` if PyTorch's current stream is being captured. For callers about to load a kernel; a launch
    may be captured."""
    if torch.cuda.is_current_stream_capturing():
        raise not_loaded(kernel)


def not_loaded(kernel: str) -> RuntimeError:
    """The error for a kernel that would have to be loaded during a capture."""
    return RuntimeError(
        f"kernel {kernel} is not loaded yet, and the driver loads nothing while a CUDA graph is captured; make the "
        "same call once before the capture, or gpuconv.warmup(model, example_input)"
    )
