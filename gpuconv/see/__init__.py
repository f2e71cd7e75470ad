"""Shows what a convolution layer does: on a tour of seven chapters, or on your own model and image.

    maps = gpuconv.see.activation_maps(model, image, "conv1")    # maps.values [K, P, Q], maps.figure()
    gpuconv.see.explain_output(model, image, "conv1", (3, 10, 12)).figure()

Each function gives an object that holds the arrays, as tensors, and draws them as a matplotlib figure. Everything is
computed by gpuconv, on whichever backend is selected. Needs: pip install 'gpuconv[see]'.
"""

from gpuconv.see.arithmetic import explain_output, spectrum
from gpuconv.see.deconvnet import deconvnet, receptive_field
from gpuconv.see.layers import activation_maps, convolutions, filters
from gpuconv.see.patches import top_patches

__all__ = [
    "activation_maps",
    "convolutions",
    "deconvnet",
    "explain_output",
    "filters",
    "receptive_field",
    "spectrum",
    "top_patches",
]
