import pytest

from cluster import durations


def test_lengths_of_time() -> None:
    assert [durations.seconds(t) for t in ("90s", "15m", "12h", "30d")] == [90, 900, 43200, 2592000]


@pytest.mark.parametrize("text", ["", "5", "0s", "-1s", "1w", "1h30m", "s", "1" * 12 + "s"])
def test_what_is_no_length_of_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write 90s"):
        durations.seconds(text)
