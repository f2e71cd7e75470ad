"""Measurements of speed and of machine code. Imported as `gpuconv.bench`."""
