"""The one answer of the static engine and of the static upstream. Imports nothing."""

from __future__ import annotations

ANSWER = "This is the fixed answer of a static engine, sixteen tokens or so of plain text."
TOKENS = 16
