"""Brings a cluster up on one machine: Ray, the control plane and the serving graph."""
