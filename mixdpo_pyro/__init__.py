"""Direct preference optimization with a distribution of preference strengths."""
