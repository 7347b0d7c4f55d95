"""verl's path and TRL's on the same recorded rollouts."""
