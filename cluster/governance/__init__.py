"""Finding personal data in text, masking it, and putting it back.

Pure: no I/O, no models, no global state. Serving, the registry and the data jobs share these
functions, so that what trains is masked exactly as what serves.
"""
