"""Row transformations of the dataset pipeline: pure functions from row to row."""
