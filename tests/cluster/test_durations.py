import pytest

from cluster import durations


def test_lengths_of_time() -> None:
    assert [durations.seconds(t) for t in ("90s", "15m", "12h", "30d")] == [90, 900, 43200, 2592000]


@pytest.mark.parametrize("text", ["", "5", "0s", "-1s", "1w", "1h30m", "s", "1" * 12 + "s"])
def test_what_is_no_length_of_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write 90s"):
        durations.seconds(text)


@pytest.mark.parametrize("text", ["90s", "15m", "12h", "30d", "1d", "7h"])
def test_lengths_are_written_as_people_write_them(text: str) -> None:
    assert durations.written(durations.seconds(text)) == text


def test_a_length_is_written_in_the_longest_unit_that_fits() -> None:
    assert durations.written(86_400.0 * 30) == "30d"
    assert durations.written(3_601.0) == "3601s"
    assert durations.written(0.5) == "0.5s"
