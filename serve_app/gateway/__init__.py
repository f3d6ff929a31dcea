"""The HTTP edge: OpenAI-compatible routes, API keys, errors, streaming."""
