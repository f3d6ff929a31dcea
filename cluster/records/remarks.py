"""Remarks that people write beside what they do: aliases of keys, reasons of a kill or a rollout.

They reach the registry and the audit chain, so they pass the normalisation and the masking that
every text does which is kept.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

from cluster.governance.structured import mask_text
from cluster.governance.vault import Vault, placeholders
from cluster.text import normalise


def remark(text: str) -> str:
    """`text` as it is kept: in normal form, personal data as placeholders."""
    return mask_text(normalise(text), Vault(placeholders([text])))


def _bounded(text: str) -> str:
    # A placeholder may be longer than what it stands for; the column has no room for more.
    return remark(text)[:63]


Alias = Annotated[str, AfterValidator(_bounded)]
