"""Bundles: an adapter version with everything it needs to run anywhere, sealed and signed."""
