"""Exported networks have standard convolutions and agree with the run's."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from gpuconv.errors import UserError
from gpuconv.train import export as exports


@pytest.mark.parametrize("format", exports.FORMATS)
def test_an_export_has_standard_convolutions_and_agrees(finished: Path, tmp_path: Path, format: str) -> None:
    if format == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package, reason=f"{package} is not installed")
    out = tmp_path / f"net.{format}"
    assert "PyTorch's own" in exports.export(finished, format, out)
    assert out.stat().st_size > 100_000 and list(tmp_path.iterdir()) == [out]
    assert about(out) == {"classes": list("0123456789"), "image_shape": [1, 8, 8], "model": "small"}


def about(file: Path) -> dict[str, object]:
    """What an exported file says of itself, read as anybody would."""
    if file.suffix == ".onnx":
        import onnxruntime

        found = onnxruntime.InferenceSession(file).get_modelmeta().custom_metadata_map
        return {name: value if name == "model" else json.loads(value) for name, value in found.items()}
    if file.suffix == ".pt2":
        torch.export.load(file, extra_files=(extra := {"gpuconv.json": ""}))
        return json.loads(extra["gpuconv.json"])
    with safetensors.safe_open(file, "pt") as opened:
        return json.loads(opened.metadata()["gpuconv"])["about"]


def test_an_export_that_cannot_be_written_is_told_before_anything_is_computed(finished: Path, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "file" / "net.onnx"):
        (tmp_path / "file").touch()
        with pytest.raises(UserError, match=r"cannot write to .*(Is a directory|Not a directory)"):
            exports.export(tmp_path / "no-run", "onnx", path)


def test_an_export_that_does_not_agree_is_not_kept(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(network: torch.nn.Module, *_: object) -> Callable[[torch.Tensor], torch.Tensor]:
        _[1].write_bytes(b"x")
        return lambda images: network(images) * (1 + 1e-5)

    monkeypatch.setitem(exports.FORMATS, "pt2", wrong)
    with pytest.raises(UserError, match=r"pt2 was not written: its outputs are off by \S+, PyTorch's by "):
        exports.export(finished, "pt2", tmp_path / "net.pt2")
    assert not list(tmp_path.iterdir())
