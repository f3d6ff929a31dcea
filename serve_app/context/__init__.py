"""The document index behind the context stage."""
