"""Fuzzing for as long as one likes: `scripts/fuzz TARGET --minutes N`; findings become tests."""
