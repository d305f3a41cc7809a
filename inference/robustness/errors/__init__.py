"""Errors of the margins: how large they are, and what cv is without them."""
