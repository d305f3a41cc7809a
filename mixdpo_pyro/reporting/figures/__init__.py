"""Figures; each function returns a matplotlib figure and changes no global state."""
