"""MultiDoGO (Peskov et al., EMNLP 2019): real customer turns with intents and slot labels."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

from cluster.answer import Understanding
from cluster.errors import DataError
from cluster.records.dataset import Fault
from data_jobs.sources.turns import LabelledTurn, Workload

_COLUMNS = ["conversationId", "turnNumber", "utteranceId", "utterance", "slot-labels", "intent"]
_MAX_LINE = 100_000


def read_workload(folder: Path, domains: tuple[str, ...]) -> Workload:
    """The train and dev splits of `domains`; rows that do not parse are listed, not fatal.

    Raises:
        DataError: a file is missing or is not MultiDoGO.
    """
    chosen = choose_domains(folder, domains)
    workload = Workload("multidogo", generated=False, licence="CDLA-Permissive-1.0")
    for domain in chosen:
        train, dev = (_find(folder, domain, split) for split in ("train", "dev"))
        workload.train[domain] = list(_read(train, domain, workload.broken))
        workload.heldout[domain] = list(_read(dev, domain, workload.broken))
        _check_disjoint(workload, domain)
    return workload


def choose_domains(folder: Path, preferred: tuple[str, ...]) -> list[str]:
    """The domains to read: those of `preferred` that are there, filled up to three.

    Raises:
        DataError: the folder holds fewer than three domains, or one without its dev split.
    """
    if not folder.is_dir():
        raise DataError(f"--data {folder} is not a folder")
    available = sorted(path.name.split(".")[0] for path in folder.glob("*.train.tsv*"))
    chosen = [name for name in preferred if name in available]
    chosen += [name for name in available if name not in chosen][: max(0, 3 - len(chosen))]
    if len(chosen) < 3:
        raise DataError(
            f"{folder} holds {len(available)} domains ({', '.join(available) or 'none'}); "
            "expected at least three files DOMAIN.train.tsv.gz with their DOMAIN.dev.tsv.gz"
        )
    for domain in chosen:
        _find(folder, domain, "dev")
    return chosen


def _find(folder: Path, domain: str, split: str) -> Path:
    for suffix in (".tsv.gz", ".tsv"):
        path = folder / f"{domain}.{split}{suffix}"
        if path.is_file():
            return path
    raise DataError(f"{folder / f'{domain}.{split}.tsv.gz'} is missing")


def _check_disjoint(workload: Workload, domain: str) -> None:
    """Held-out turns are turns training never sees; a turn in both splits is dropped from train."""
    heldout = {turn.id for turn in workload.heldout[domain]}
    workload.train[domain] = [t for t in workload.train[domain] if t.id not in heldout]


def _read(path: Path, domain: str, broken: list[Fault]) -> Iterator[LabelledTurn]:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8", errors="replace", newline="\n") as handle:
            header = handle.readline(_MAX_LINE).rstrip("\r\n").split("\t")
            if header != _COLUMNS:
                raise DataError(f"{path} is not MultiDoGO: its columns are {header[:8]}")
            for number, line in enumerate(handle, start=2):
                cells = line.rstrip("\r\n").split("\t")
                reason = _fault(cells, line)
                if reason:
                    broken.append(Fault(file=path.name, line=number, reason=reason))
                else:
                    answer = Understanding(cells[5], _slots(cells[3], cells[4]))
                    yield LabelledTurn(cells[2], domain, cells[3], answer)
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _fault(cells: list[str], line: str) -> str | None:
    if len(line) > _MAX_LINE:
        return f"longer than {_MAX_LINE} characters"
    if len(cells) != len(_COLUMNS):
        return f"{len(cells)} columns instead of {len(_COLUMNS)}"
    if not cells[3].strip() or not cells[5].strip():
        return "empty utterance or intent"
    if len(cells[3].split(" ")) != len(cells[4].split(" ")):
        return "the number of slot labels is not the number of words"
    return None


def _slots(utterance: str, labels: str) -> dict[str, list[str]]:
    """Runs of equal labels are one value each."""
    slots: dict[str, list[str]] = {}
    previous = "O"
    for word, label in zip(utterance.split(" "), labels.split(" "), strict=True):
        if label != "O":
            values = slots.setdefault(label, [])
            if label == previous:
                values[-1] += f" {word}"
            else:
                values.append(word)
        previous = label
    return slots
