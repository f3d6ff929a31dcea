"""Lengths of time as people write them: `90s`, `15m`, `12h`, `30d`."""

from __future__ import annotations

import re

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST_S = 36_500.0 * 86_400
_LENGTH = re.compile(r"([0-9]{1,9})([smhd])")


def seconds(text: str) -> float:
    """The seconds that `text` stands for.

    Raises:
        ValueError: it is not a length of time, or none at all.
    """
    found = _LENGTH.fullmatch(text)
    if found is None or int(found[1]) == 0:
        raise ValueError(f"{text[:32]!r} is not a length of time: write 90s, 15m, 12h or 30d")
    length = float(int(found[1]) * _UNITS[found[2]])
    if length > _LONGEST_S:
        raise ValueError(f"{text[:32]!r} is longer than a hundred years, which is the most")
    return length


def written(length_s: float) -> str:
    """`length_s` seconds in the longest unit that needs no fraction: 86400 is `1d`."""
    fitting = [unit for unit, size in _UNITS.items() if length_s and length_s % size == 0]
    return f"{length_s / _UNITS[fitting[-1]]:.0f}{fitting[-1]}" if fitting else f"{length_s:g}s"
