"""MixDPO training on top of TRL."""
