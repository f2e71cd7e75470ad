"""CUDA graphs: what cannot be done while one is captured."""

import torch


def refuse_capture(kernel: str) -> None:
    """Raise RuntimeError if PyTorch's current stream is being captured, where `kernel` cannot be loaded. To be asked
    before loading alone: a launch may be captured."""
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"kernel {kernel} is not loaded yet, and nothing can be loaded while a CUDA graph is captured; make the "
            "same call once before the capture, or gpuconv.warmup(model, example_input)"
        )
