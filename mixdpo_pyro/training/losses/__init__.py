"""Losses beside the mixed likelihood: baselines of other papers, and what TRL computes."""
