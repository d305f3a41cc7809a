"""Trainings of several arms, betas and seeds: what is asked for, its folder, and its processes."""
