"""The strength of preference in a trainer: its parameters, gradients, logs and checkpoints."""
