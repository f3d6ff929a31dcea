"""Registration: what is refused is gone again, and what may have been done is kept."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.errors import ConflictError, NotFoundError, UnavailableError, UserError
from cluster.types import AdapterVersion
from tests.fakes.control import ControlDouble
from train_jobs import publish
from train_jobs.publish import register

V1 = AdapterVersion("care", 1)


class Adapters:
    """The registry's part: `says` is what each try meets, in order; None is that it is done."""

    def __init__(self, *says: Exception | None) -> None:
        self.says = list(says)
        self.known: dict[AdapterVersion, str] = {}

    async def register(self, path: str, _owner: str, _by: str) -> AdapterVersion:
        said = self.says.pop(0)
        if said is not None:
            raise said
        self.known[V1] = path
        return V1

    async def version(self, version: AdapterVersion) -> Any:
        if version not in self.known:
            raise NotFoundError("it is not registered")
        return SimpleNamespace(path=self.known[version])


def _control(adapters: Adapters) -> Any:
    return ControlDouble(adapters=adapters)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(publish, "_AWAY_S", (0.0, 0.0))
    made = tmp_path / "care" / "1"
    made.mkdir(parents=True)
    return made


@pytest.mark.parametrize("error", [ConflictError("another base"), UserError("x"), ValueError("x")])
def test_what_is_refused_is_gone_and_its_number_free(path: Path, error: Exception) -> None:
    with pytest.raises(type(error)):
        register(_control(Adapters(error)), path, V1, "acme")
    assert not path.exists()


def test_a_control_plane_that_restarts_is_waited_for(path: Path) -> None:
    adapters = Adapters(UnavailableError("restarting"), None)
    assert register(_control(adapters), path, V1, "acme") == V1
    assert path.exists()


def test_what_was_done_though_no_answer_came_is_not_undone(path: Path) -> None:
    adapters = Adapters(UnavailableError("it died"), ConflictError("already registered"))
    adapters.known[V1] = str(path)
    assert register(_control(adapters), path, V1, "acme") == V1
    assert path.exists()


def test_nothing_is_unloaded_while_the_control_plane_is_down(path: Path) -> None:
    adapters = Adapters(*[UnavailableError("gone")] * 3)
    with pytest.raises(UnavailableError):
        register(_control(adapters), path, V1, "acme")
    assert path.exists()
