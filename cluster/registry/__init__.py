"""The registry: keys, adapter versions, datasets, runs, labels and events, in SQL."""
