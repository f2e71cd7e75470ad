"""The number types by name, and PyTorch's settings for float32."""

import torch

# What users call them, and the element types; float32 is multiplied in two ways.
NUMBERS = {
    "float16": torch.float16, "bfloat16": torch.bfloat16, "tf32": torch.float32, "float32": torch.float32,
    "float64": torch.float64,
}  # fmt: skip


class float32_as:  # a context manager, used as a verb
    """Within it PyTorch multiplies float32 as TF32 where `numbers` is 'tf32', else as IEEE; cudnn.benchmark is on."""

    def __init__(self, numbers: str) -> None:
        self.precision = "tf32" if numbers == "tf32" else "ieee"

    def __enter__(self) -> None:
        cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
        self.before = (cudnn.benchmark, cudnn.conv.fp32_precision, matmul.fp32_precision)  # type: ignore[attr-defined]
        self._set(True, self.precision, self.precision)

    def __exit__(self, *error: object) -> None:
        self._set(*self.before)

    def _set(self, benchmark: bool, conv: str, matmul: str) -> None:
        torch.backends.cudnn.benchmark = benchmark
        torch.backends.cudnn.conv.fp32_precision = conv  # type: ignore[attr-defined]  # made at run time
        torch.backends.cuda.matmul.fp32_precision = matmul
