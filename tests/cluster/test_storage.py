from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cluster import storage
from cluster.errors import ArtifactError, ConflictError, DataError, DiskFullError


def _published(tmp_path: Path) -> Path:
    final = tmp_path / "name" / "1"
    staged = storage.staging(final)
    (staged / "a.txt").write_text("one")
    storage.publish(staged, final)
    return final


def test_a_published_directory_verifies(tmp_path: Path) -> None:
    final = _published(tmp_path)
    assert storage.require_stable(final) == storage.tree_digest(final)
    assert [entry.name for entry in final.parent.iterdir()] == ["1"]


def test_alteration_after_publishing_is_noticed(tmp_path: Path) -> None:
    final = _published(tmp_path)
    (final / "a.txt").write_text("two")
    with pytest.raises(ArtifactError, match="altered"):
        storage.require_stable(final)


def test_a_directory_without_marker_is_not_published(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="STABLE"):
        storage.require_stable(tmp_path)


def test_versions_are_immutable(tmp_path: Path) -> None:
    final = _published(tmp_path)
    with pytest.raises(ConflictError, match="immutable"):
        storage.publish(storage.staging(final), final)


def test_links_are_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    with pytest.raises(ArtifactError, match="symbolic link"):
        storage.tree_digest(tmp_path)


def test_paths_stay_below_their_root(tmp_path: Path) -> None:
    assert storage.confined(tmp_path, "a", "1") == tmp_path.resolve() / "a" / "1"
    with pytest.raises(ArtifactError, match="leaves"):
        storage.confined(tmp_path, "..", "x")


def test_a_full_disk_leaves_nothing_published_and_nothing_behind(small_disk: Path) -> None:
    final = small_disk / "care" / "1"
    with pytest.raises(DiskFullError, match="make room"), storage.publishing(final) as staged:
        (staged / "weights").write_bytes(b"x" * (1 << 20))
    assert list(final.parent.iterdir()) == []
    with pytest.raises(DiskFullError, match="make room"), storage.publishing(final) as staged:
        save_file({"w": torch.zeros(1 << 18)}, staged / "adapter.safetensors")
    assert list(final.parent.iterdir()) == []
    with storage.publishing(final) as staged:
        (staged / "weights").write_bytes(b"x" * 1024)
    assert storage.require_stable(final)


def test_whatever_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    final = tmp_path / "care" / "1"
    with pytest.raises(KeyboardInterrupt), storage.publishing(final):
        raise KeyboardInterrupt
    assert list(final.parent.iterdir()) == []


@pytest.mark.parametrize("text", ["{", "[" * 200_000, "\udc00"])
def test_invalid_json_is_reported(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(DataError, match="is not JSON"):
        storage.read_json(path)
