"""Margins of a policy and a reference: computed, and read from a table."""
