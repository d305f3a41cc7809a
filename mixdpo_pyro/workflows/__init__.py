"""Whole runs: training and the demo."""
