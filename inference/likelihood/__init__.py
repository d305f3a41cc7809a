"""The marginal likelihood, compressed for many evaluations."""
