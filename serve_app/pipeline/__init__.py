"""The order of a request's steps, and how a stage is called for many requests at once."""
