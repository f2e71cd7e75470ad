"""Convolutions in Triton. Read `common` first, then `gather_forward`, `gather_grad_input`, `gather_grad_weight`."""
