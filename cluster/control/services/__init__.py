"""The control plane's services: one class a noun, each behind its contract in
`cluster.control.contracts`. `cluster.control.plane` composes them; they hold no Ray object."""
