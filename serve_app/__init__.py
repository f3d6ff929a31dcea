"""Serving: the gateway, the seven stages, the engine, and the graph that connects them."""
