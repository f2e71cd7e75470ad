"""Measurements. Imported as `gpuconv.bench`."""
