"""A virtual GPU: the PTX that Triton, Gluon and NVRTC compile kernels to, executed on the CPU, checked and counted."""
