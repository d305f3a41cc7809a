"""Readers of public preference datasets, one file per source."""
