"""The replayable workload on disk: what the import job writes and the demo reads.

workload.json          what it is, its domains, counts, broken rows
history/DOMAIN.jsonl   labelled turns imported as historical logs
traffic/DOMAIN.jsonl   turns to be replayed as requests, with the annotation kept aside for the
                       scripted annotator
heldout/DOMAIN.jsonl   masked, labelled turns that nothing but an evaluation reads
router/  index/        the routing artefact and the document index
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from cluster import storage
from cluster.answer import Understanding, masked_example
from cluster.errors import DataError
from cluster.records.dataset import Fault

SUMMARY = "workload.json"


class TurnRecord(BaseModel):
    """One turn with its annotation."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    id: str
    domain: str
    text: str
    intent: str
    slots: dict[str, list[str]]

    @property
    def answer(self) -> Understanding:
        """The annotation as a structured answer."""
        return Understanding(self.intent, self.slots)


class WorkloadSummary(BaseModel):
    """What the workload is."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    generated: bool
    licence: str
    domains: tuple[str, ...]
    history: dict[str, int]
    traffic: dict[str, int]
    heldout: dict[str, int]
    broken_rows: int
    broken: tuple[Fault, ...]


def write_turns(path: Path, turns: Iterable[TurnRecord]) -> int:
    """Write `turns` as JSON lines; returns how many."""
    lines = [turn.model_dump_json() for turn in turns]
    storage.write_atomic(path, "".join(line + "\n" for line in lines))
    return len(lines)


def read_turns(path: Path) -> Iterator[TurnRecord]:
    """The turns in `path`.

    Raises:
        DataError: a line is not a turn; the message names it.
    """
    with path.open(encoding="utf-8") as handle:
        for number, line in enumerate(handle, start=1):
            try:
                yield TurnRecord.model_validate_json(line)
            except ValidationError as error:
                raise DataError(f"{path} line {number}: {error.errors()[0]['msg']}") from error


def masked_turn(turn: TurnRecord) -> TurnRecord:
    """The turn as serving would have seen it: normalised, values masked on both sides."""
    text, answer = masked_example(turn.text, turn.answer)
    return turn.model_copy(update={"text": text, "slots": answer.slots})


def read_summary(folder: Path) -> WorkloadSummary:
    """The summary of the workload in `folder`."""
    return WorkloadSummary.model_validate(storage.read_json(folder / SUMMARY))
