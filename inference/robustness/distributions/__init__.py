"""Distributions of the strength beside the smooth families: two groups, and any at all."""
