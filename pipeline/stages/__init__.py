"""Training stages other than RL."""
