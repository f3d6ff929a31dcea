"""How an answer comes about: the target is resolved, attempted, and fallen back from."""
