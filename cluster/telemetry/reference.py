"""Reference figures that reports and dashboards show beside what was measured."""

#: Published share of each stage in the time of a retail orchestration layer, in percent.
PUBLISHED_SHARES = {
    "routing": 29,
    "governance": 22,
    "context": 19,
    "monitoring": 14,
    "policy": 8,
    "data_prep": 5,
    "audit": 3,
}
