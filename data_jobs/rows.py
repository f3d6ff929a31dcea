"""Log lines to training rows. A line that cannot be used becomes a row with a `fault`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from cluster.answer import masked_example, parse
from cluster.errors import DataError
from cluster.governance.structured import mask_text
from cluster.governance.vault import Vault, placeholders
from cluster.records.dataset import COLUMNS
from cluster.records.labels import Label
from cluster.records.trace import RequestTrace, decode
from cluster.text import normalise
from cluster.workload import TurnRecord

#: Columns of every row of the pipeline, broken or not, so that blocks share one schema.
EMPTY: dict[str, Any] = {**dict.fromkeys(COLUMNS, ""), "file": "", "line": 0, "fault": ""}


def from_history(row: dict[str, Any], adapter: str) -> dict[str, Any]:
    """A history line as a training row, masked as serving masks."""
    found = {**EMPTY, "file": row["file"], "line": row["line"]}
    try:
        turn = TurnRecord.model_validate_json(row["raw"])
    except ValidationError as error:
        return {**found, "fault": f"not a labelled turn: {error.errors()[0]['msg']}"}
    text, answer = masked_example(turn.text, turn.answer)
    if not text:
        return {**found, "fault": "empty text"}
    return {
        **found,
        "row_id": f"history:{turn.id}",
        "adapter": adapter,
        "prompt": json.dumps([{"role": "user", "content": text}], ensure_ascii=False),
        "completion": answer.text(),
        "source": "history",
    }


def from_trace(
    row: dict[str, Any], adapter: str, labels: Mapping[str, Label]
) -> list[dict[str, Any]]:
    """A trace line as one training row where an expert labelled it, as no row where none did."""
    found = {**EMPTY, "file": row["file"], "line": row["line"]}
    try:
        trace = decode(row["raw"])
    except DataError:
        return [{**found, "fault": "not a trace"}]
    label = labels.get(trace.trace_id)
    if label is None or not isinstance(trace, RequestTrace):
        return []
    trace_id, prompt = trace.trace_id, trace.prompt
    written = normalise(label.answer)
    answer = parse(mask_text(written, Vault(placeholders([written, json.dumps(prompt)]))))
    if answer is None or not prompt:
        return [{**found, "trace_id": trace_id, "fault": "the label is not a structured answer"}]
    if any(_unmasked(text) for message in prompt for text in message.values()):
        return [{**found, "trace_id": trace_id, "fault": "personal data left in the prompt"}]
    return [
        {
            **found,
            "row_id": f"trace:{trace_id}",
            "adapter": adapter,
            "prompt": json.dumps(prompt, ensure_ascii=False),
            "completion": answer.text(),
            "source": "trace",
            "trace_id": trace_id,
            "annotator": label.annotator,
        }
    ]


def _unmasked(text: str) -> bool:
    return mask_text(text, Vault()) != text
