"""Files that several processes may use at once: the user's cache directory, atomic writing, and locks."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Make `content` the file at `path`. Raises OSError where it cannot; a file that was there then stays."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def writable_or_raise(path: Path, folder: bool = False) -> None:
    """Raise OSError, which names `path` and says why, unless a file could be written there; `folder`: files in it.

    Called before a long computation whose result is to be written. Neither need exist yet, and nothing is left behind.
    """
    nearest = next(place for place in (path, *path.absolute().parents) if place.exists())
    try:
        if nearest is path and not folder:
            with open(path, "ab"):
                return
        with tempfile.TemporaryFile(dir=nearest):
            return
    except OSError as error:
        where = "" if nearest is path else f"{nearest}: "
        raise type(error)(f"cannot write to {path}: {where}{error.strerror}") from None


def cache_folder() -> Path:
    """The user's cache: $GPUCONV_CACHE, else $XDG_CACHE_HOME/gpuconv, else ~/.cache/gpuconv. It is not created."""
    folder = os.environ.get("GPUCONV_CACHE")
    return Path(folder) if folder else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "gpuconv")


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """A context that one process at a time is in, by a lock on the file `lock` (where the system has such locks)."""
    try:
        import fcntl
    except ImportError:  # Windows: without a lock
        yield
        return
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
