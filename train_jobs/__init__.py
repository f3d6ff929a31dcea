"""Training: fits, evaluates and publishes adapters; trains the small base model."""
