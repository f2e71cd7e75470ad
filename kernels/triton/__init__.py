"""Convolutions in Triton. To learn from them read `common`, `gather_forward`, `gather_grad_input`, `gather_grad_weight`."""
