"""Diagnosis of a table of margins: verdict, checks, power."""
