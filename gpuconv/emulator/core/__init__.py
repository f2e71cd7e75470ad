"""The core in C++; `gpuconv.emulator.build` compiles it."""
