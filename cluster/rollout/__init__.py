"""Rollout decisions: pure functions from evidence to a verdict."""
