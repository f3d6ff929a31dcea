"""Text that others wrote, as it goes to terminals and logs: it moves no cursor and breaks no line.

Owns the one escape that the command line and the log handlers share.
"""

from __future__ import annotations

import logging


def printable(line: str) -> str:
    """A line whose names, which tenants choose, cannot move the cursor, colour or break lines."""
    return "".join(char if char.isprintable() or char == "\t" else _escaped(char) for char in line)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


class PrintableRecords(logging.Filter):
    """Has a handler write each record's message as one printable line, and tracebacks by lines."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record through, escaped."""
        record.msg, record.args = printable(record.getMessage()), ()
        if record.exc_info and not record.exc_text:
            trace = logging.Formatter().formatException(record.exc_info)
            record.exc_text = "\n".join(map(printable, trace.split("\n")))
        return True
