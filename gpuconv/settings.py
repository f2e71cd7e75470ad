"""The settings of a call, all but its tensors and sizes: as a value, and as the one string that the ops take."""

import functools
from operator import index
from typing import NamedTuple

from gpuconv.sizes import Pads


class Settings(NamedTuple):
    """The settings of a convolution: stride, padding, dilation and groups as in PyTorch, activation and backend."""

    stride: tuple[int, ...]
    padding: Pads
    dilation: tuple[int, ...]
    groups: int
    activation: str = "none"
    backend: str = "auto"

    def encode(self) -> str:
        """The text of the settings: 'stride=2,1 padding=1:1,0:0 dilation=1,1 groups=1 activation=none backend=auto'."""
        # index(): a compiler has symbols for what depends on an input, and is to compile anew for another number.
        return (
            f"stride={','.join([str(index(s)) for s in self.stride])} "
            f"padding={','.join([f'{index(low)}:{index(high)}' for low, high in self.padding])} "
            f"dilation={','.join([str(index(d)) for d in self.dilation])} "
            f"groups={index(self.groups)} activation={self.activation} backend={self.backend}"
        )

    @staticmethod
    @functools.lru_cache(maxsize=4096)
    def decode(key: str) -> "Settings":
        """The inverse of `encode`. Raises ValueError, showing the form, for any other string."""
        try:
            fields = dict(field.split("=", 1) for field in key.split(" "))
            return Settings(
                stride=tuple(int(s) for s in fields.pop("stride").split(",")),
                padding=tuple((int(p.split(":")[0]), int(p.split(":")[1])) for p in fields.pop("padding").split(",")),
                dilation=tuple(int(d) for d in fields.pop("dilation").split(",")),
                groups=int(fields.pop("groups")),
                **fields,
            )
        except (ValueError, KeyError, IndexError, TypeError) as error:
            example = Settings((1, 1), ((0, 0), (0, 0)), (1, 1), 1).encode()
            raise ValueError(f"key must be of the form {example!r}, but got {key!r}") from error
