"""Simulated choices, and whether posteriors are as wide as they claim."""
