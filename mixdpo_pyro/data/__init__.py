"""Preference pairs: loading, validation, splitting, audit, simulation."""
