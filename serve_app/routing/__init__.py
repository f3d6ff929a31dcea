"""The router: a versioned artefact from labelled history, read without pickle."""
