"""What people are like: how stable their strengths are, and what goes with them."""
