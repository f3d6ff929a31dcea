"""The control plane: one named Ray actor that owns the registry, the swaps and the label queue."""
