"""A finished run, and a copy of it to be damaged."""

from pathlib import Path

import pytest
from training_runs import train

from gpuconv.train.config import Config


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "finished"
    train(path, Config(epochs=2, batch_size=128))
    return path


@pytest.fixture
def damaged(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, to be damaged."""
    path = tmp_path / "damaged"
    path.mkdir()
    for file in finished.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    return path
