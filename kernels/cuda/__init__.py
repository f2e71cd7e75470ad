"""Convolutions in CUDA C, in four families: `simt` (multiply-adds), `tensor` (tensor cores), `depthwise` and `banded`.

A .cu file is one module, named after its family and its direction; a .cuh file is shared by several. To learn from them
read `common.cuh`, `simt.cuh`, the `simt_*.cu`, then the `tensor_*.cu`.
"""
