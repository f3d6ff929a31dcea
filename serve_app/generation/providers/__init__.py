"""Providers of generated answers; each implements `serve_app.generation.providers.base`."""
