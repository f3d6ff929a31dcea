"""Calls from a gateway to the replicas of a deployment, over connections that stay open."""
