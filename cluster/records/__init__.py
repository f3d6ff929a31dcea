"""Frozen, versioned values that cross a package or a disk boundary; no SQL, Ray or torch."""
