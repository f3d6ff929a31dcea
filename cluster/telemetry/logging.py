"""One log format for every process. Prompts, answers and keys are never logged above DEBUG."""

from __future__ import annotations

import logging


def configure(level: int = logging.INFO) -> None:
    """Plain, timestamped lines on standard error."""
    logging.basicConfig(
        level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S"
    )
