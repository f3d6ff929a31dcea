"""Data jobs: imports, the router, the document index, dataset versions; all on Ray Data."""
