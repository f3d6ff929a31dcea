"""The evaluation gate: may a candidate stand before users? A pure decision on measured evidence."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb, exp, lgamma, log

from cluster.records.evaluation import EvaluationReport, Metric
from cluster.records.gate import Floor, Gain, GateRules, NoRegression, Rule

#: Coins up to which whole numbers are summed up, which grow as long as there are coins.
_EXACT = 1000
#: A difference of two shares is not exact in binary: 0.90 to 0.88 is a drop of 0.02.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Verdict:
    """The gate's decision and its reason, written for the person who asks why."""

    passed: bool
    reason: str


def sign_test(wins: int, losses: int) -> float:
    """One-sided exact sign test (McNemar 1947): P(at least `wins` of the discordant pairs)."""
    total = wins + losses
    if total <= _EXACT:
        return float(sum(comb(total, k) for k in range(wins, total + 1)) / 2**total)
    return _tail(total, wins) if wins > losses else 1 - _tail(total, losses + 1)


def _tail(total: int, least: int) -> float:
    """P(at least `least` of `total` fair coins), for more than half of them."""
    if least > total:
        return 0.0
    logarithms = lgamma(total + 1) - lgamma(least + 1) - lgamma(total - least + 1)
    term = found = exp(logarithms - total * log(2))
    for k in range(least, total):
        # Each is smaller than the one before, the more so the further out.
        term *= (total - k) / (k + 1)
        if term <= found * 1e-17:
            break
        found += term
    return found


def judge(report: EvaluationReport, rules: GateRules) -> Verdict:
    """Whether the evaluated candidate passes every rule, in order."""
    reasons = []
    for rule in rules.rules:
        metric = report.metric(rule.metric)
        if metric is None:
            return Verdict(False, f"{rule.metric} was not evaluated")
        verdict = _judge(rule, metric, report.previous)
        if not verdict.passed:
            return verdict
        reasons.append(verdict.reason)
    return Verdict(True, "; ".join(reasons))


def _judge(rule: Rule, metric: Metric, previous: str | None) -> Verdict:
    match rule:
        case Floor():
            return _floor(rule, metric)
        case Gain():
            return _gain(rule, metric, previous)
        case NoRegression():
            return _no_regression(rule, metric, previous)


def _floor(rule: Floor, metric: Metric) -> Verdict:
    if metric.rows < rule.min_rows:
        return Verdict(
            False, f"{rule.metric} rests on {metric.rows} rows, {rule.min_rows} are needed"
        )
    said = f"{rule.metric} {metric.value:.3f}"
    if metric.value < rule.min:
        return Verdict(False, f"{said} is below the floor, {rule.min:.3f}")
    return Verdict(True, f"{said} is at least {rule.min:.3f}")


def _gain(rule: Gain, metric: Metric, previous: str | None) -> Verdict:
    if previous is None:
        return Verdict(True, "no live version to compare with")
    if metric.previous is None or metric.wins is None or metric.losses is None:
        return Verdict(False, f"{rule.metric} was not compared with {previous} row by row")
    gain, chance = metric.value - metric.previous, sign_test(metric.wins, metric.losses)
    against = (
        f"{rule.metric} {metric.value:.3f} against {metric.previous:.3f} of {previous} "
        f"(p = {chance:.2g})"
    )
    if gain < rule.min - _ROUNDING:
        return Verdict(False, f"gain {gain:+.3f} is below {rule.min:+.3f}: {against}")
    if chance > rule.max_p_value:
        return Verdict(False, f"gain {gain:+.3f} may be luck: {against}")
    return Verdict(True, f"gain {gain:+.3f}: {against}")


def _no_regression(rule: NoRegression, metric: Metric, previous: str | None) -> Verdict:
    if previous is None:
        return Verdict(True, "no live version to compare with")
    if metric.previous is None:
        return Verdict(False, f"{rule.metric} was not compared with {previous}")
    drop = metric.previous - metric.value
    against = f"{rule.metric} {metric.value:.3f} against {metric.previous:.3f} of {previous}"
    if drop > rule.max_drop + _ROUNDING:
        return Verdict(False, f"regression of {drop:.3f}, {rule.max_drop:.3f} allowed: {against}")
    return Verdict(True, f"no regression: {against}")
