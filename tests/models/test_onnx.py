"""A converted model exports to ONNX as PyTorch's own: standard Conv and ConvTranspose nodes, run by onnxruntime."""

import numpy as np
import pytest
import torch

import gpuconv

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")


def net() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 8, 3, padding="same", groups=8, bias=False),
        torch.nn.ConvTranspose2d(8, 4, 3, stride=2, padding=1, output_padding=1),
    ).eval()


@pytest.mark.parametrize("backend", ["auto", "numpy"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_onnx_has_standard_nodes_and_the_same_outputs(backend: str, tmp_path) -> None:
    model, x = net(), torch.randn(2, 3, 9, 8)
    expected = model(x).detach().numpy()
    assert not gpuconv.convert(model).kept
    with gpuconv.use_backend(backend):
        torch.onnx.export(model, (x,), tmp_path / "net.onnx", dynamo=True, verbose=False)
    graph = onnx.load(tmp_path / "net.onnx")
    assert {node.domain for node in graph.graph.node} == {""} and not graph.functions
    kinds = [node.op_type for node in graph.graph.node]
    assert kinds.count("Conv") == 2 and kinds.count("ConvTranspose") == 1
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
