"""Registration: what is refused is gone again, and what may have been done is kept."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.errors import AwayError, ConflictError, UserError
from cluster.types import AdapterVersion
from train_jobs import publish
from train_jobs.publish import register

V1 = AdapterVersion("care", 1)


class Control:
    """The registry's part: `says` is what each try meets, in order; None is that it is done."""

    def __init__(self, *says: Exception | None) -> None:
        self.says = list(says)
        self.known: dict[AdapterVersion, str] = {}

    def register_candidate(self, path: str, _owner: str) -> AdapterVersion:
        said = self.says.pop(0)
        if said is not None:
            raise said
        self.known[V1] = path
        return V1

    def adapter_version(self, version: AdapterVersion) -> Any:
        if version not in self.known:
            raise ConflictError("it is not registered")
        return SimpleNamespace(path=self.known[version])


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(publish, "_AWAY_S", (0.0, 0.0))
    made = tmp_path / "care" / "1"
    made.mkdir(parents=True)
    return made


@pytest.mark.parametrize("error", [ConflictError("another base"), UserError("x"), ValueError("x")])
def test_what_is_refused_is_gone_and_its_number_free(path: Path, error: Exception) -> None:
    with pytest.raises(type(error)):
        register(Control(error), path, V1, "acme")  # type: ignore[arg-type]
    assert not path.exists()


def test_a_control_plane_that_restarts_is_waited_for(path: Path) -> None:
    control = Control(AwayError("restarting"), None)
    assert register(control, path, V1, "acme") == V1  # type: ignore[arg-type]
    assert path.exists()


def test_what_was_done_though_no_answer_came_is_not_undone(path: Path) -> None:
    control = Control(AwayError("it died"), ConflictError("already registered"))
    control.known[V1] = str(path)
    assert register(control, path, V1, "acme") == V1  # type: ignore[arg-type]
    assert path.exists()


def test_nothing_is_thrown_away_while_nobody_knows(path: Path) -> None:
    control = Control(*[AwayError("gone")] * 3)
    with pytest.raises(AwayError):
        register(control, path, V1, "acme")  # type: ignore[arg-type]
    assert path.exists()
