"""Targets: what is measured of each."""

from serve_app.protocol import Generation
from tests.fakes.targets import target, targets


def _generation(first_ms: float | None, total_ms: float, waited_ms: float = 0.0) -> Generation:
    return Generation(
        "ok", "base", 3, 11, "stop", -0.1, -0.2, first_ms, total_ms, "r", None, waited_ms
    )


def test_only_streamed_answers_tell_the_latency_of_a_target() -> None:
    known, base = targets(), target()
    assert known.profile(base).first_token_ms is None
    known.observe(base, _generation(None, 500.0))
    assert known.profile(base).first_token_ms is None
    known.observe(base, _generation(140.0, 240.0, waited_ms=100.0))
    profile = known.profile(base)
    assert (profile.first_token_ms, profile.token_ms) == (40.0, 10.0)
    known.observe(base, _generation(50.0, 350.0))
    profile = known.profile(base)
    assert (profile.first_token_ms, profile.token_ms) == (41.0, 12.0), "a moving average"
