"""Records, health checks and pages of finished runs."""
