"""Export of a trained network as weights, a program of torch.export, or ONNX, which run without gpuconv.

What is written holds PyTorch's (or ONNX's) own convolutions, and the normalisation of the images: it takes [N, C, H, W]
with values 0 … 1, for any N, and gives a score for each class. Each file also says what it is for: `classes`, the names
in the order of the scores, `image_shape` and `model`, in JSON. They stand in the metadata `gpuconv` of safetensors, in
the extra file `gpuconv.json` of pt2, and in ONNX's metadata under these names.
"""

import contextlib
import json
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import gpuconv
from gpuconv.errors import UserError
from gpuconv.files import writable_or_raise
from gpuconv.train import checkpoint, networks, run as runs

ABOUT = "gpuconv.json"
_IMAGES = 8
_FACTOR = 4  # allowed error: times PyTorch's own against float64, at least one rounding of the largest output


def export(run: Path, format: str, out: Path) -> str:
    """Write the network of the run at `run` to `out`; returns a line on how well it agrees. format: one of FORMATS.

    Raises UserError, with nothing written, where the file cannot be written or its outputs do not agree, a package is
    missing, or the run is damaged.
    """
    if format not in FORMATS:
        raise UserError(f"format must be one of {', '.join(FORMATS)}, but got {format!r}")
    try:
        writable_or_raise(out)
    except OSError as error:
        raise UserError(str(error)) from None
    network, config = runs.load_run(run, device="cpu", backend="aten")
    image_shape, classes = runs.load_shapes(run)
    gpuconv.revert(network.float())
    images = torch.rand(_IMAGES, *image_shape, generator=torch.Generator().manual_seed(0))
    about = {"classes": list(classes), "image_shape": list(image_shape), "model": config.model}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        file = Path(folder, f"network.{format}")
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(None):
                warnings.simplefilter("ignore")  # of exporters, about themselves
                again = FORMATS[format](network, images, file, about)
                got = again(images[:3])
        except ImportError as error:
            raise UserError(f"format {format} needs: pip install onnx onnxscript onnxruntime ({error})") from None
        expected = network(images[:3])
        exact = network.double()(images[:3].double())
        own, off = ((outputs.double() - exact).abs().max().item() for outputs in (expected, got))
        allowed = _FACTOR * max(own, exact.abs().max().item() * torch.finfo(torch.float32).eps / 2)
        if not off <= allowed:
            raise UserError(f"{format} was not written: its outputs are off by {off:.1e}, PyTorch's by {own:.1e}")
        out.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.write(out, file.read_bytes())
    return f"outputs within {off:.1e} of float64's (PyTorch's own: {own:.1e})"


def _safetensors(network: nn.Module, images: Tensor, file: Path, about: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    file.write_bytes(checkpoint.to_bytes(network.state_dict(), about))
    again = gpuconv.revert(networks.build(about["model"], tuple(about["image_shape"]), len(about["classes"])))
    checkpoint.load_weights(again, checkpoint.from_bytes(file.read_bytes(), file)[0], file)
    return again.eval()


def _pt2(network: nn.Module, images: Tensor, file: Path, about: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    program = torch.export.export(network, (images,), dynamic_shapes=({0: torch.export.Dim("n", min=1)},))
    torch.export.save(program, file, extra_files={ABOUT: json.dumps(about)})
    again = torch.export.load(file)
    theirs = {str(node.target) for node in again.graph.nodes if str(node.target).startswith("gpuconv")}
    if theirs:
        raise UserError(f"pt2 was not written: the program would need gpuconv for {', '.join(theirs)}")
    return again.module()


def _onnx(network: nn.Module, images: Tensor, file: Path, about: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    import onnx
    import onnxruntime

    torch.onnx.export(
        network, (images,), file, dynamo=True, verbose=False, external_data=False, input_names=["images"],
        output_names=["scores"], dynamic_shapes=({0: torch.export.Dim("n", min=1)},),
    )  # fmt: skip
    model = onnx.load(file)
    if {node.domain for node in model.graph.node} != {""} or model.functions:
        raise UserError("onnx was not written: it would have nodes that are not ONNX's own")
    onnx.helper.set_model_props(model, {k: v if isinstance(v, str) else json.dumps(v) for k, v in about.items()})
    onnx.save(model, file)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


FORMATS: dict[str, Callable[[nn.Module, Tensor, Path, dict[str, Any]], Callable[[Tensor], Tensor]]] = {
    "safetensors": _safetensors, "pt2": _pt2, "onnx": _onnx,
}  # fmt: skip
