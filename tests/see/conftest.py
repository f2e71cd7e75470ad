"""A tour made once, quickly: the same chapters, with less training and fewer tries."""

import pytest

from gpuconv.see import tour
from gpuconv.see.page import Chapter


@pytest.fixture(scope="session")
def chapters() -> list[Chapter]:
    return tour.chapters(epochs=4, evaluations=120, seeds=2)
