"""Backend `triton`: the backend, its launches, and one module for each family of kernels."""
