"""`gpuconv.arrays`: NumPy and CuPy arrays in, arrays of the same kind out, nothing copied."""

import importlib.util

import numpy as np
import pytest
import torch

import gpuconv
from gpuconv import arrays

FUNCTIONS = ["conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"]


def problem(name: str, dtype: type = np.float64) -> tuple[list[np.ndarray], dict]:
    """input, weight, bias; settings."""
    ndim = int(name[-2])
    random = np.random.default_rng(3)
    made = [random.standard_normal(s) for s in ((2, 4, *(5,) * ndim), (4, 2, *(3,) * ndim), (4,))]
    settings = {"stride": 2, "padding": 1, "groups": 2, "dilation": 1}
    return [a.astype(dtype) for a in made], settings


@pytest.mark.parametrize("backend", ["auto", "numpy"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_numpy_arrays_give_numpy_arrays(name: str, backend: str) -> None:
    inputs, settings = problem(name)
    y = getattr(arrays, name)(*inputs, **settings, backend=backend)
    expected = getattr(torch, name)(*map(torch.from_numpy, inputs), **settings)
    assert type(y) is np.ndarray and y.flags.writeable and y.dtype == np.float64
    np.testing.assert_allclose(y, expected.numpy(), rtol=0, atol=1e-12)
    without_bias = getattr(arrays, name)(*inputs[:2], **settings, backend=backend)
    np.testing.assert_allclose(without_bias + inputs[2].reshape(4, *(1,) * int(name[-2])), y, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.complex128, np.int64])
def test_dtypes(dtype: type) -> None:
    (x, w, b), settings = problem("conv2d", np.float32)
    x, w, b = ((10 * a).astype(dtype) for a in (x, w, b))
    y = arrays.conv2d(x, w, b, **settings, backend="numpy")
    expected = torch.conv2d(*map(torch.from_numpy, (x, w, b)), **settings)
    assert y.dtype == dtype
    torch.testing.assert_close(torch.from_numpy(y), expected)


class Looking(gpuconv.backends.Backend):
    """Remembers where the tensors lie that it was given."""

    name = "looking"
    seen: tuple[int, ...] = ()

    def forward(self, problem, input, weight, bias, residual, activation):
        type(self).seen = tuple(t.data_ptr() for t in (input, weight, bias))
        return torch.zeros(problem.output_shape, dtype=input.dtype)


@pytest.mark.parametrize("how", ["plain", "read-only", "transposed", "broadcast", "mapped"])
def test_nothing_is_copied(how: str, tmp_path) -> None:
    gpuconv.backends.register(Looking())
    (x, w, b), settings = problem("conv2d")
    if how == "read-only":
        for a in (x, w, b):
            a.flags.writeable = False
    elif how == "transposed":
        x = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    elif how == "broadcast":
        x = np.broadcast_to(x[:1], x.shape)
    elif how == "mapped":
        np.save(tmp_path / "x.npy", x)
        x = np.load(tmp_path / "x.npy", mmap_mode="r")
    y = arrays.conv2d(x, w, b, **settings, backend="looking")
    assert Looking.seen == tuple(a.ctypes.data for a in (x, w, b))
    assert y.shape == (2, 4, 3, 3)


def test_read_only_arrays_stay_as_they_are() -> None:
    (x, w, b), settings = problem("conv2d")
    expected = arrays.conv2d(x, w, b, **settings)
    before = x.copy()
    x.flags.writeable = False
    assert np.array_equal(arrays.conv2d(x, w, b, **settings), expected)
    assert not x.flags.writeable and np.array_equal(x, before)


def test_strides_that_dlpack_cannot_express_are_copied() -> None:
    (x, w, b), settings = problem("conv2d")
    flipped = x[:, :, ::-1]
    odd = np.zeros(x.shape, np.dtype([("value", x.dtype), ("rest", "i1")]))["value"]
    odd[...] = flipped
    expected = arrays.conv2d(np.ascontiguousarray(flipped), w, b, **settings)
    for a in (flipped, odd):
        assert np.array_equal(arrays.conv2d(a, w, b, **settings), expected)


def test_no_gradients_are_kept() -> None:
    (x, w, _), _ = problem("conv2d")
    with torch.enable_grad():
        assert type(arrays.conv2d(x, w, groups=2)) is np.ndarray


def test_errors_name_the_argument() -> None:
    (x, w, b), _ = problem("conv2d")
    for arguments, message in [
        ((torch.from_numpy(x), w), "input must be a NumPy or CuPy array, but got Tensor; gpuconv.functional takes"),
        ((x, w.tolist()), "weight must be a NumPy or CuPy array, but got list"),
        ((x, w, np.ma.masked_array(b)), "bias must be a NumPy or CuPy array, but got MaskedArray"),
        ((x.astype(">f8"), w), "input must have a dtype of PyTorch's in native byte order, but got >f8"),
        ((x, w.astype(object)), "weight must have a dtype of PyTorch's in native byte order, but got object"),
    ]:
        with pytest.raises(TypeError, match=message):
            arrays.conv2d(*arguments)
    with pytest.raises(RuntimeError, match="expected input"):
        arrays.conv2d(x, w)
    with pytest.raises(RuntimeError, match="should be the same"):
        arrays.conv2d(x, w.astype(np.float32), groups=2)


@pytest.mark.parametrize("dtype", ["V0", "V3", "U0", "S3", "O", "M8[s]", "f4,i4", [], ">i2"], ids=str)
@pytest.mark.parametrize("lying", ["densely", "read-only", "backwards"])
def test_a_dtype_that_pytorch_does_not_have_is_named(dtype: object, lying: str) -> None:
    x = np.zeros((1, 1, 2, 2), np.dtype(dtype))
    x.flags.writeable = lying != "read-only"
    with pytest.raises(TypeError, match="weight must have a dtype of PyTorch's in native byte order, but got "):
        arrays.conv2d(np.zeros((1, 1, 2, 2), np.float32), x[..., ::-1] if lying == "backwards" else x)


needs_cupy = pytest.mark.skipif(
    importlib.util.find_spec("cupy") is None or not torch.cuda.is_available(), reason="needs CuPy and a GPU"
)


@needs_cupy
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("which", ["default", "own", "null"])
def test_cupy_arrays_give_cupy_arrays_on_cupys_stream(name: str, which: str) -> None:
    import cupy

    inputs, settings = problem(name)
    expected = getattr(arrays, name)(*inputs, **settings)
    own = cupy.cuda.Stream(non_blocking=True)
    stream = {"default": cupy.cuda.get_current_stream(), "own": own, "null": cupy.cuda.Stream.null}[which]
    with stream:
        x, w, b = map(cupy.asarray, inputs)
        for _ in range(50):  # work that is still under way when the convolution is asked for
            x = x + 1 - 1
        y = getattr(arrays, name)(x, w, b, **settings)
        doubled = 2 * y
    stream.synchronize()
    assert type(y) is cupy.ndarray
    np.testing.assert_allclose(doubled.get(), 2 * expected, rtol=0, atol=1e-10)


@needs_cupy
def test_numpy_and_cupy_do_not_mix() -> None:
    import cupy

    (x, w, _), _ = problem("conv2d")
    with pytest.raises(TypeError, match="arrays of one kind, but got input from numpy, weight from cupy"):
        arrays.conv2d(x, cupy.asarray(w))
