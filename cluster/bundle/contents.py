"""What a bundle holds, how it is sealed, and what is checked before anything of it is believed.

bundle.json      what it is: version, base, lineage, licence, proof
README.md        the model card
adapter/         the adapter in PEFT's format, with Headrace's own manifest
merged/          base and adapter as one model in Hugging Face's format, tokenizer included
tokenizer/       the tokenizer alone, for use with the adapter
licences/        licence and card of the base model
signer.pem       the public key it is signed with
SHA256SUMS       every file's digest; `sha256sum -c SHA256SUMS` checks them
SHA256SUMS.sig   the Ed25519 signature of SHA256SUMS
"""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from cluster import storage
from cluster.bundle import signing
from cluster.errors import ArtifactError, one_line

MANIFEST, CARD, SIGNER = "bundle.json", "README.md", "signer.pem"
ADAPTER, MERGED, TOKENIZER, LICENCES = "adapter", "merged", "tokenizer", "licences"
SUMS, SIGNATURE = "SHA256SUMS", "SHA256SUMS.sig"
FORMAT = 1
_LINE = re.compile(r"([0-9a-f]{64})  ([^\0]{1,512})")
_MAX_SUMS = 1 << 20
_MAX_SIGNED = 1 << 16


class Lineage(BaseModel):
    """Where a version comes from."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    parent: str | None
    dataset: str
    dataset_digest: str
    run_id: str
    base_model: str
    base_digest: str


class BundleManifest(BaseModel):
    """What a bundle is."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
    format: int
    version: str
    adapter_digest: str
    lineage: Lineage
    licence: str
    permitted_use: str
    merged_dtype: str
    proof_difference: float
    """Nats a token between the merged model and the trainer's golden log-probabilities."""
    exported_at: str


def seal(bundle: Path, key: signing.PrivateKey) -> None:
    """Write the checksums of everything in `bundle` and sign them."""
    (bundle / SIGNER).write_bytes(signing.public_pem(key))
    lines = [
        f"{storage.file_digest(path)}  {path.relative_to(bundle).as_posix()}\n"
        for path in sorted(bundle.rglob("*"))
        if path.is_file()
    ]
    (bundle / SUMS).write_text("".join(lines), encoding="utf-8")
    (bundle / SIGNATURE).write_bytes(signing.sign(key, (bundle / SUMS).read_bytes()))


def verified(bundle: Path, trusted: frozenset[str]) -> BundleManifest:
    """The manifest of `bundle`, once all of it is as it was sealed by somebody trusted.

    `trusted` holds fingerprints of public keys.

    Raises:
        ArtifactError: a file is missing, altered or not listed, or the signer is not trusted.
    """
    signer = _small(bundle / SIGNER, _MAX_SIGNED)
    fingerprint = signing.fingerprint(signer)
    sums = _small(bundle / SUMS, _MAX_SUMS)
    signing.verify(signer, sums, _small(bundle / SIGNATURE, _MAX_SIGNED))
    if fingerprint not in trusted:
        raise ArtifactError(
            f"{bundle} is signed by {fingerprint}, which is not trusted here: compare it with the "
            "fingerprint that its maker published, and name it with --trust"
        )
    _check_files(bundle, sums)
    try:
        manifest = BundleManifest.model_validate(storage.read_json(bundle / MANIFEST, 1 << 20))
    except (ValidationError, ValueError) as error:
        raise ArtifactError(f"{bundle / MANIFEST}: {one_line(error)}") from error
    if manifest.format != FORMAT:
        raise ArtifactError(f"{bundle} has format {manifest.format}; this reads format {FORMAT}")
    return manifest


def _check_files(bundle: Path, sums: bytes) -> None:
    listed = {}
    for line in sums.decode("utf-8", "replace").splitlines():
        found = _LINE.fullmatch(line)
        if found is None:
            raise ArtifactError(f"{bundle / SUMS} has a line that is no checksum")
        listed[found[2]] = found[1]
    present = set()
    for path in bundle.rglob("*"):
        if path.is_symlink():
            raise ArtifactError(f"{path} is a symbolic link: bundles hold none")
        if path.is_file():
            present.add(path.relative_to(bundle).as_posix())
    present -= {SUMS, SIGNATURE}
    if present != listed.keys():
        odd = sorted(present ^ listed.keys())[:5]
        raise ArtifactError(f"{bundle} does not hold exactly the files it lists: {odd}")
    for name, digest in listed.items():
        if storage.file_digest(storage.confined(bundle, name)) != digest:
            raise ArtifactError(f"{bundle / name} was altered after it was sealed")


def _small(path: Path, limit: int) -> bytes:
    if path.is_symlink() or not path.is_file():
        raise ArtifactError(f"{path} is missing: not a bundle")
    if path.stat().st_size > limit:
        raise ArtifactError(f"{path} is over {limit} bytes: not a bundle")
    return path.read_bytes()
