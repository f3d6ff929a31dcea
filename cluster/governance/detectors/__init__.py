"""One file per group of detectors; `cluster.governance.pii` runs them in order of precedence."""
