"""The wheel, turned once: the demo's steps from traffic to a better model in production."""
