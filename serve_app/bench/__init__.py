"""Benchmarks of serving: what is measured runs for real, except for the engine that says so."""
