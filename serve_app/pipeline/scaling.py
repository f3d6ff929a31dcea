"""Autoscaling by requests under way, not by calls: a coalesced call carries many of them.

Serve counts calls; a replica says how many requests these hold. Pure, and imported by Serve's
controller.
"""

from __future__ import annotations

from typing import Any, Protocol

#: The name under which a replica reports its requests under way.
WORK = "headrace_requests_under_way"
POLICY = "serve_app.pipeline.scaling:by_requests"


class Scaling(Protocol):
    """The part of `ray.serve.config.AutoscalingContext` that decides."""

    @property
    def aggregated_metrics(self) -> dict[str, dict[Any, float]] | None:
        """By metric name and replica."""
        ...

    @property
    def total_queued_requests(self) -> float | None:
        """Calls that wait for a replica."""
        ...

    @property
    def config(self) -> Any:
        """Its `target_ongoing_requests` is what one replica should have."""
        ...


def by_requests(context: Scaling) -> tuple[float, dict[str, Any]]:
    """Replicas wanted; Serve applies its bounds, factors and delays to the number."""
    metrics = context.aggregated_metrics or {}
    work = sum(metrics.get(WORK, {}).values()) + (context.total_queued_requests or 0.0)
    return work / float(context.config.target_ongoing_requests), {}
