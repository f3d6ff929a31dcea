"""The evaluation gate: may a candidate stand before users? A pure decision on measured evidence."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb, exp, lgamma, log

from cluster.adapters import Evaluation
from cluster.config import ConfigModel

#: Coins up to which whole numbers are summed up, which grow as long as there are coins.
_EXACT = 1000


class GateConfig(ConfigModel):
    """What a candidate has to show."""

    min_accuracy: float = 0.75
    """Least held-out intent accuracy of any version."""
    min_gain: float = 0.0
    """Least gain in accuracy over the live version, on the same rows."""
    max_p_value: float = 0.05
    """Greatest chance that the gain over the live version is luck (one-sided sign test)."""
    min_rows: int = 200
    """Fewest held-out rows a verdict may rest on."""


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


def judge(evaluation: Evaluation, gate: GateConfig) -> Verdict:
    """Whether the evaluated candidate passes `gate`."""
    if evaluation.heldout_rows < gate.min_rows:
        return Verdict(
            False, f"only {evaluation.heldout_rows} held-out rows, {gate.min_rows} needed"
        )
    if evaluation.accuracy < gate.min_accuracy:
        return Verdict(
            False, f"accuracy {evaluation.accuracy:.3f} is below the least, {gate.min_accuracy:.3f}"
        )
    if evaluation.previous is None or evaluation.previous_accuracy is None:
        return Verdict(True, f"accuracy {evaluation.accuracy:.3f}, no live version to compare with")
    gain = evaluation.accuracy - evaluation.previous_accuracy
    chance = sign_test(evaluation.wins, evaluation.losses)
    against = (
        f"{evaluation.accuracy:.3f} against {evaluation.previous_accuracy:.3f} of "
        f"{evaluation.previous} (p = {chance:.2g})"
    )
    if gain < gate.min_gain:
        return Verdict(False, f"gain {gain:+.3f} is below {gate.min_gain:+.3f}: {against}")
    if chance > gate.max_p_value:
        return Verdict(False, f"gain {gain:+.3f} may be luck: {against}")
    return Verdict(True, f"gain {gain:+.3f}: {against}")
