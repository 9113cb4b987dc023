"""Rollouts -> credit -> update."""
