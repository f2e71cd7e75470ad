"""The kernels, and nothing else. Imported as `gpuconv.kernels`; imports nothing of gpuconv itself."""
