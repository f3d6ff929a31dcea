"""Bundles: an export says the same in plain transformers, and nothing altered is believed."""

import math
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from cluster import adapters, storage
from cluster.base_models import describe
from cluster.bundle import contents, merge, signing
from cluster.bundle.export import Source, export
from cluster.errors import ArtifactError, ConfigError, ConflictError, DiskFullError
from cluster.records.adapter import AdapterRecord
from cluster.types import AdapterVersion, VersionState
from serve_app.bench.versions import Maker
from tests.conftest import REPOSITORY

MODEL = REPOSITORY / "cluster" / "models" / "headrace-mini"
VERSION = AdapterVersion("care", 1)


def _silent(_line: str) -> None:
    """Progress that nobody reads."""


def _source(path: Path) -> Source:
    manifest = adapters.inspect(path, max_rank=32)
    digest = storage.require_stable(path)
    record = AdapterRecord(VERSION, 1, VersionState.LIVE, str(path), digest, "", "", manifest)
    return Source(record, describe(MODEL), "# care@1\n")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("versions")
    Maker(MODEL).publish("care", 1, 7, out)
    return out / "care" / "1"


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> signing.PrivateKey:
    return signing.own_key(tmp_path_factory.mktemp("key") / "key.pem")


@pytest.fixture(scope="module")
def sealed(
    published: Path, key: signing.PrivateKey, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "care-1"
    return export(_source(published), out, key, "float32", _silent)


@pytest.fixture
def bundle(sealed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sealed, tmp_path / "bundle"))


def _trusted(key: signing.PrivateKey) -> frozenset[str]:
    return frozenset({signing.fingerprint(signing.public_pem(key))})


def test_a_bundle_says_what_it_is(bundle: Path, key: signing.PrivateKey, published: Path) -> None:
    found = contents.verified(bundle, _trusted(key))
    manifest = _source(published).record.manifest
    assert found.version == "care@1"
    assert found.lineage.dataset == manifest.dataset
    assert found.lineage.base_digest == storage.tree_digest(MODEL)
    assert found.licence == describe(MODEL).licence
    assert found.proof_difference < 1e-4
    assert (bundle / "README.md").read_text() == "# care@1\n"
    assert list((bundle / "licences").iterdir())


def test_plain_transformers_writes_the_same(bundle: Path, published: Path) -> None:
    probes = adapters.inspect(published, max_rank=32).golden
    tokenizer = AutoTokenizer.from_pretrained(bundle / "merged")
    beside = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32), str(bundle / "adapter")
    )
    merged = AutoModelForCausalLM.from_pretrained(bundle / "merged", dtype=torch.float32)
    for model in (merged.eval(), beside.eval()):
        for probe in probes:
            written = model.generate(
                input_ids=torch.tensor([probe.prompt_token_ids]),
                max_new_tokens=len(probe.target_token_ids),
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
            )
            assert tuple(written[0].tolist()[len(probe.prompt_token_ids) :]) == (
                probe.target_token_ids
            )
    text = "where is my order"
    assert tokenizer(text) == AutoTokenizer.from_pretrained(MODEL)(text)


def test_what_is_no_number_is_no_proof(published: Path) -> None:
    probes = adapters.inspect(published, max_rank=32).golden
    [probe] = [one for one in probes if one.prompt_logprobs][:1]
    prompt = len(probe.prompt_token_ids)

    def overflowing(input_ids: torch.Tensor) -> SimpleNamespace:
        logits = torch.zeros(1, input_ids.shape[1], 4096)
        logits[0, prompt:] = torch.nan  # of the answer alone
        return SimpleNamespace(logits=logits)

    assert math.isnan(merge.difference(overflowing, [probe]))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_common_tools_check_it(bundle: Path) -> None:
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=bundle, check=True)
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", "signer.pem", "-rawin"]
    command += ["-in", "SHA256SUMS", "-sigfile", "SHA256SUMS.sig"]
    subprocess.run(command, cwd=bundle, check=True, capture_output=True)


def _alter(bundle: Path) -> None:
    path = bundle / "adapter" / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def _reseal(bundle: Path) -> None:
    _alter(bundle)
    for name in (contents.SUMS, contents.SIGNATURE, contents.SIGNER):
        (bundle / name).unlink()
    contents.seal(bundle, signing.own_key(bundle.parent / "another.pem"))


def _climb(bundle: Path) -> None:
    (bundle.parent / "outside").write_text("x")
    sums = (bundle / contents.SUMS).read_text()
    digest = storage.file_digest(bundle.parent / "outside")
    (bundle / contents.SUMS).write_text(f"{sums}{digest}  ../outside\n")


def _link(bundle: Path) -> None:
    path = bundle / "README.md"
    path.unlink()
    path.symlink_to("/etc/hostname")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (_alter, "altered after it was sealed"),
        (_reseal, "which is not trusted here"),
        (_climb, "not what was signed"),
        (_link, "symbolic link"),
        (lambda b: (b / "adapter" / "x.bin").write_bytes(b"x"), "exactly the files"),
        (lambda b: (b / "merged" / "config.json").unlink(), "exactly the files"),
        (lambda b: (b / contents.SIGNATURE).write_bytes(b"x" * 64), "not what was signed"),
        (lambda b: (b / contents.SIGNATURE).unlink(), "not a bundle"),
        (lambda b: (b / contents.SIGNER).write_bytes(b"x"), "cannot be read"),
        (lambda b: (b / contents.SUMS).write_bytes(b"x" * (2 << 20)), "over"),
    ],
)
def test_nothing_altered_is_believed(
    bundle: Path, key: signing.PrivateKey, change: Callable[[Path], object], complaint: str
) -> None:
    change(bundle)
    with pytest.raises(ArtifactError, match=complaint):
        contents.verified(bundle, _trusted(key))


@pytest.mark.parametrize("said", ["logprobs", "prompt_logprobs"])
def test_what_the_trainer_did_not_prove_is_not_exported(
    published: Path, key: signing.PrivateKey, tmp_path: Path, said: str
) -> None:
    source = _source(published)
    probe = source.record.manifest.golden[0]
    wrong = probe.model_copy(update={said: tuple(v - 3.0 for v in getattr(probe, said))})
    manifest = source.record.manifest.model_copy(update={"golden": (wrong,)})
    record = AdapterRecord(
        VERSION, 1, VersionState.LIVE, str(published), source.record.digest, "", "", manifest
    )
    with pytest.raises(ArtifactError, match="away from care@1's trainer"):
        export(Source(record, source.base, ""), tmp_path / "out", key, "float32", _silent)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_no_bundle(
    published: Path, key: signing.PrivateKey, small_disk: Path
) -> None:
    with pytest.raises(DiskFullError, match="make room"):
        export(_source(published), small_disk / "out", key, "float32", _silent)
    assert list(small_disk.iterdir()) == []


def test_an_export_writes_over_nothing(
    published: Path, key: signing.PrivateKey, sealed: Path
) -> None:
    with pytest.raises(ConflictError, match="already there"):
        export(_source(published), sealed, key, "float32", _silent)


def test_a_signing_key_is_its_owners(tmp_path: Path) -> None:
    path = tmp_path / "state" / "key.pem"
    first = signing.public_pem(signing.own_key(path))
    assert signing.public_pem(signing.own_key(path)) == first
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_text("nonsense")
    with pytest.raises(ConfigError, match="not a signing key"):
        signing.own_key(path)
