"""Inspection of kernels, without a GPU: the launches for a problem, and the machine code that they compile to."""
