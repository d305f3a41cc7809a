"""Explanations other than differences between annotators."""
