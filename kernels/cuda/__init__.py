"""Convolutions in CUDA C. To learn from them read `common.cuh`, `simt.cuh`, the `simt_*.cu`, then the `tensor_*.cu`."""
