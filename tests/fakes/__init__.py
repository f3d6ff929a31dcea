"""Test doubles. Nothing here is imported by the product."""
