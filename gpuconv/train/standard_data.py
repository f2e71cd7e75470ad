"""Standard data sets in their published files: scikit-learn's digits, MNIST, CIFAR-10 and CIFAR-100."""

import gzip
import io
import pickle
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from gpuconv.errors import UserError
from gpuconv.train.raw_data import Part, RawData

_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_VERSIONS = {  # folder and first file of the binary and the Python version
    "10": (("cifar-10-batches-bin", "data_batch_1.bin"), ("cifar-10-batches-py", "data_batch_1")),
    "100": (("cifar-100-binary", "train.bin"), ("cifar-100-python", "train")),
}
_PIXELS = 3072  # of an image of CIFAR: 3×32×32
_DIGITS = tuple("0123456789")


def digits() -> RawData:
    """1,797 handwritten digits of 8×8 pixels, which come with scikit-learn."""
    from sklearn.datasets import load_digits  # takes a second to import

    raw = load_digits()
    return RawData({"train": (raw.images[:, None].astype(np.uint8), raw.target)}, _DIGITS, 16.0)


def mnist(path: Path) -> RawData:
    """MNIST from its four IDX files, gzipped or not."""

    def idx(name: str, ndim: int) -> Any:
        files = [path / f"{stem}{end}" for stem in (name, name.replace("-idx", ".idx")) for end in ("", ".gz")]
        file = next(filter(Path.exists, files), files[0])
        raw = file.read_bytes()
        try:
            raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        except (EOFError, OSError, zlib.error) as error:
            raise UserError(f"{file} is damaged: {error}") from None
        shape = np.frombuffer(raw[4 : 4 + 4 * ndim], ">u4") if len(raw) >= 4 + 4 * ndim else ()
        if raw[:4] != bytes([0, 0, 8, ndim]) or len(raw) != 4 + 4 * ndim + np.prod(shape, dtype=np.int64):
            raise UserError(f"{file} is damaged: it is not an IDX file of {ndim} dimensions, or not a whole one")
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * ndim).reshape([int(size) for size in shape])

    def part(name: str) -> Part:
        return idx(f"{name}-images-idx3-ubyte", 3)[:, None], idx(f"{name}-labels-idx1-ubyte", 1)

    return RawData({"train": part("train"), "test": part("t10k")}, _DIGITS)


# ---- CIFAR ----------------------------------------------------------------------------------------------------------


def cifar10(path: Path) -> RawData:
    """CIFAR-10 in the binary version, records of a label and 3×32×32 pixels, or in the Python version, pickles."""
    folder, is_python = _version(path, "10")
    names = [f"data_batch_{k}" for k in range(1, 6)]
    if is_python:
        batches = [_batch(folder / name, b"labels", 10_000) for name in (*names, "test_batch")]
    else:
        batches = [_records(folder / f"{name}.bin", 1, 10_000) for name in (*names, "test_batch")]
    train = (np.concatenate(arrays) for arrays in zip(*batches[:5], strict=True))
    return RawData({"train": (next(train), next(train)), "test": batches[5]}, _CIFAR10)


def cifar100(path: Path) -> RawData:
    """CIFAR-100 in the binary or the Python version, with the hundred fine labels."""
    folder, is_python = _version(path, "100")
    counts = {"train": 50_000, "test": 10_000}
    if is_python:
        parts = {name: _batch(folder / name, b"fine_labels", count) for name, count in counts.items()}
        found = _unpickled(folder / "meta").get(b"fine_label_names", [])
        names = [name.decode() if isinstance(name, bytes) else str(name) for name in found]
    else:
        parts = {name: _records(folder / f"{name}.bin", 2, count) for name, count in counts.items()}
        names = (folder / "fine_label_names.txt").read_text(encoding="utf-8").split()
    if len(names) != 100:
        raise UserError(f"{folder} has the names of {len(names)} classes, not of 100")
    return RawData(parts, tuple(names))


def _version(path: Path, number: str) -> tuple[Path, bool]:
    """The folder with the files of CIFAR-`number`, `path` or one in it, and whether it is the Python version."""
    found = _search(path, number)
    if found:
        return found
    other = {"10": "100", "100": "10"}[number]
    if _search(path, other):
        raise UserError(f"{path} holds CIFAR-{other}: say cifar{other}:{path}")
    packed = sorted(path.glob(f"cifar-{number}-*.tar.gz"))
    if packed:
        raise UserError(f"{packed[0]} is packed: tar -xf it, and say the folder that comes out of it")
    inner, file = _VERSIONS[number][0]
    folder = path / inner if (path / inner).is_dir() else path
    raise UserError(
        f"cannot read {folder / file}: No such file; CIFAR-{number} is cifar-{number}-binary.tar.gz or "
        f"cifar-{number}-python.tar.gz of www.cs.toronto.edu/~kriz/cifar.html, unpacked"
    )


def _search(path: Path, number: str) -> tuple[Path, bool] | None:
    places = (
        (folder, file, is_python)
        for (inner, file), is_python in zip(_VERSIONS[number], (False, True), strict=True)
        for folder in (path, path / inner)
    )
    return next(((folder, is_python) for folder, file, is_python in places if (folder / file).is_file()), None)


def _records(file: Path, labels: int, count: int) -> Part:
    """A file of the binary version: records of `labels` label bytes, the last of which counts, and 3×32×32 pixels."""
    raw, size = file.read_bytes(), count * (labels + _PIXELS)
    if len(raw) != size:
        raise UserError(f"{file} is damaged: it has {len(raw):,} bytes, not {size:,}")
    records = np.frombuffer(raw, np.uint8).reshape(count, labels + _PIXELS)
    return records[:, labels:].reshape(-1, 3, 32, 32), records[:, labels - 1]


def _batch(file: Path, key: bytes, count: int) -> Part:
    """A file of the Python version: a pickled dictionary with `data` and labels."""
    found = _unpickled(file)
    images, labels = found.get(b"data"), found.get(key)
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape != (count, _PIXELS):
        raise UserError(f"{file} is damaged: its data are no {count:,} rows of {_PIXELS:,} bytes")
    if not isinstance(labels, list) or len(labels) != count or not all(type(label) is int for label in labels):
        raise UserError(f"{file} is damaged: its {key.decode()} are no {count:,} numbers")
    return images.reshape(-1, 3, 32, 32), np.array(labels)


class _Numbers(pickle.Unpickler):
    """Reads arrays, numbers, text, lists and dictionaries; refuses a pickle that needs anything else."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _empty_array
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes for Python 2
            return lambda text, encoding: text.encode("latin-1")
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no data need")


def _empty_array(kind: Any, shape: Any, code: Any) -> Any:
    if kind is not np.ndarray:
        raise pickle.UnpicklingError("it asks for an array that is none")
    return np.ndarray.__new__(np.ndarray, (0,), "b")  # what NumPy's _reconstruct makes, to be filled


def _unpickled(file: Path) -> dict[Any, Any]:
    raw = file.read_bytes()
    try:
        found = _Numbers(io.BytesIO(raw), encoding="bytes").load()
    except Exception as error:  # a damaged pickle makes it stumble over anything
        what = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{file} is damaged, or no file of CIFAR's Python version: {what}") from None
    if not isinstance(found, dict):
        raise UserError(f"{file} is no file of CIFAR's Python version: it holds no dictionary")
    return {key.encode() if isinstance(key, str) else key: value for key, value in found.items()}
