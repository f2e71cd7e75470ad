"""Existing PyTorch models: convolutions converted, fused, and compiled before they are needed."""
