"""What others wrote moves no cursor, in terminals and in logs."""

import io
import logging

import pytest

from cluster.printing import PrintableRecords, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain café\t1", "plain café\t1"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\nforged line", "a\\nforged line"),
        ("\x9b2J\r", "\\x9b2J\\r"),
        ("right\u202eleft\u2028", "right\\u202eleft\\u2028"),
    ],
)
def test_lines_are_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_log_record_is_one_line_and_a_traceback_keeps_its_lines() -> None:
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.addFilter(PrintableRecords())
    logger = logging.Logger("test")
    logger.addHandler(handler)
    logger.warning("of %s", "ann\n2026-11-28 ERROR forged \x1b[2J")
    try:
        raise ValueError("no \x1b[31m\rsuch")
    except ValueError:
        logger.exception("failed for %r", "x")
    lines = out.getvalue().splitlines()
    assert lines[0] == "of ann\\n2026-11-28 ERROR forged \\x1b[2J"
    assert lines[1] == "failed for 'x'"
    assert lines[2].startswith("Traceback")
    assert lines[-1] == "ValueError: no \\x1b[31m\\rsuch"
