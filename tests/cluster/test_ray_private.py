"""What is asked of Ray beyond its stable interface, as far as it shows without a cluster."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from cluster.ray_private import log_with_serve


class Kept(logging.Handler):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


@pytest.fixture
def serves_log() -> Iterator[Kept]:
    names = ("ray.serve", "cluster", "serve_app")
    loggers = [logging.getLogger(name) for name in names]
    before = [(list(one.handlers), one.level, one.propagate) for one in loggers]
    handler = Kept()
    loggers[0].addHandler(handler)
    yield handler
    for one, (handlers, level, propagate) in zip(loggers, before, strict=True):
        one.handlers, one.level, one.propagate = handlers, level, propagate


def test_our_records_go_into_serves_log(serves_log: Kept) -> None:
    logging.getLogger("serve_app.somewhere").warning("before")
    log_with_serve()
    logging.getLogger("serve_app.somewhere").warning("a replica is down")
    logging.getLogger("cluster.somewhere").info("the table changed")
    logging.getLogger("elsewhere").warning("not ours")
    assert serves_log.said == ["a replica is down", "the table changed"]
