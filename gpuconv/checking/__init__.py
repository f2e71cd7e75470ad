"""Checks of backends (the oracle suite, the self-test, the sanitizer) and of the installation (`gpuconv doctor`)."""
