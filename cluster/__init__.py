"""The foundation: domain types, storage, registry, control plane and the Ray runtime.

Imports no sibling package.
"""
