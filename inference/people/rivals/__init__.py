"""Rival models of how preferences differ between people, on one harness."""
