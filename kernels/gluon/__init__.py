"""Convolutions in Gluon, for Hopper. Read `common` first, then `hopper_conv`."""
