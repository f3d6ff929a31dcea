"""The engine: vLLM behind our own protocol, and the adapters it holds."""
