"""The import job: a labelled source becomes history, replayable traffic and held-out rows.

It also fits what serving needs before any adapter exists: the router and the document index,
both from history only.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
from numpy.typing import NDArray

from cluster import router_artefact, storage
from cluster.answer import Understanding, masked_example
from cluster.embedding import routing_embedder
from cluster.governance.structured import mask_text
from cluster.governance.vault import Vault, placeholders
from cluster.records.dataset import MAX_NAMED_FAULTS
from cluster.text import normalise
from cluster.types import EVERYONE
from cluster.workload import SUMMARY, TurnRecord, WorkloadSummary, masked_turn, write_turns
from data_jobs.config import ImportConfig
from data_jobs.sources import multidogo, retail
from data_jobs.sources.turns import LabelledTurn, Workload

_ANCHORS = 4000
_EMBED_BLOCK = 1024


def import_workload(config: ImportConfig) -> WorkloadSummary:
    """Read the source, split it, write everything under `config.out`."""
    workload = (
        multidogo.read_workload(Path(config.data), config.domains)
        if config.data
        else retail.generate_workload(config.seed)
    )
    out = Path(config.out)
    rng = random.Random(config.seed)
    history: list[TurnRecord] = []
    counts: dict[str, dict[str, int]] = {"history": {}, "traffic": {}, "heldout": {}}
    for domain, turns in workload.train.items():
        rng.shuffle(turns)
        records = [_record(turn) for turn in turns]
        past = records[: config.history_rows]
        live = records[config.history_rows :][: config.traffic_rows]
        kept = [
            _record(turn) for turn in _sample(rng, workload.heldout[domain], config.heldout_rows)
        ]
        history += past
        for kind, items in (("history", past), ("traffic", live), ("heldout", _masked(kept))):
            counts[kind][domain] = write_turns(out / kind / f"{domain}.jsonl", items)
    embedded = _embed([_clean(turn) for turn in history])
    _fit_router(history, embedded, out / "router")
    _write_index(workload, history, config)
    summary = WorkloadSummary(
        name=workload.name,
        generated=workload.generated,
        licence=workload.licence,
        domains=tuple(workload.train),
        history=counts["history"],
        traffic=counts["traffic"],
        heldout=counts["heldout"],
        broken_rows=len(workload.broken),
        broken=tuple(workload.broken[:MAX_NAMED_FAULTS]),
    )
    storage.write_atomic(out / SUMMARY, json.dumps(summary.model_dump(mode="json"), indent=2))
    return summary


def _record(turn: LabelledTurn) -> TurnRecord:
    return TurnRecord(
        id=turn.id,
        domain=turn.domain,
        text=turn.text,
        intent=turn.answer.intent,
        slots=turn.answer.slots,
    )


def _sample(rng: random.Random, turns: list[LabelledTurn], count: int) -> list[LabelledTurn]:
    return turns if len(turns) <= count else rng.sample(turns, count)


def _masked(turns: list[TurnRecord]) -> list[TurnRecord]:
    return [masked_turn(turn) for turn in turns]


def _clean(turn: TurnRecord) -> str:
    return masked_example(turn.text, Understanding(turn.intent))[0]


def _masked_text(text: str) -> str:
    normal = normalise(text)
    return mask_text(normal, Vault(placeholders([normal])))


class _EmbedBatch:
    """Embeds a batch's `text` column; one model an actor."""

    def __init__(self) -> None:
        self._model = routing_embedder("bfloat16")

    def __call__(self, batch: dict[str, NDArray[np.str_]]) -> dict[str, object]:
        vectors = self._model([str(text) for text in batch["text"]])
        return {"position": batch["position"], "embedding": vectors}


def _embed(texts: list[str]) -> NDArray[np.float32]:
    """Embeddings of `texts` in order, shape (texts, dimensions), by a Ray Data actor pool."""
    items = [{"position": i, "text": text} for i, text in enumerate(texts)]
    rows = ray.data.from_items(items, override_num_blocks=1 + len(items) // _EMBED_BLOCK)
    embedded = rows.map_batches(
        _EmbedBatch, batch_size=256, compute=ray.data.ActorPoolStrategy(size=1), num_cpus=1
    ).take_all()
    embedded.sort(key=lambda row: row["position"])
    return np.stack([row["embedding"] for row in embedded]).astype(np.float32)


def _fit_router(history: list[TurnRecord], vectors: NDArray[np.float32], out: Path) -> None:
    """Multinomial logistic regression over (adapter, intent)."""
    from sklearn.linear_model import LogisticRegression

    names = [f"{turn.domain}\t{turn.intent}" for turn in history]
    model = LogisticRegression(C=8.0, max_iter=300).fit(vectors, names)
    classes = [(str(name).split("\t")[0], str(name).split("\t")[1]) for name in model.classes_]
    step = max(1, len(vectors) // _ANCHORS)
    router_artefact.write(
        router_artefact.RouterArtefact(
            model.coef_.astype(np.float32),
            model.intercept_.astype(np.float32),
            vectors[::step],
            classes,
        ),
        out,
    )


def _write_index(workload: Workload, history: list[TurnRecord], config: ImportConfig) -> None:
    """The source's documents; where it has none, one labelled example turn of each intent. Each has
    its tenant, or is everyone's; what is embedded and kept is masked."""
    documents = list(workload.documents)
    tenant = EVERYONE if config.shared and documents else config.tenant
    if config.document_values == "mask":
        documents = [(_masked_text(title), _masked_text(text)) for title, text in documents]
    if not documents:
        seen: dict[tuple[str, str], str] = {}
        for turn in history:
            seen.setdefault((turn.domain, turn.intent), _clean(turn))
        documents = [
            (f"{domain}: {intent}", f'"{text}" means {intent}')
            for (domain, intent), text in sorted(seen.items())
        ]
    vectors = _embed([f"{title}: {text}" for title, text in documents])
    table = pa.table(
        {
            "title": [title for title, _ in documents],
            "text": [text for _, text in documents],
            "tenant": [tenant] * len(documents),
            "embedding": [row.tolist() for row in vectors],
        }
    )
    with storage.publishing(Path(config.out) / "index") as staged:
        pq.write_table(table, staged / "documents.parquet")
