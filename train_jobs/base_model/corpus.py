"""The base model's corpus: public train splits read in place, mixed with generated text.

Owns which sources are used and in what proportion. It never reads an intent or slot label of
MultiDoGO (the demo learns those from traffic), a test split, or a share-alike source.
"""

from __future__ import annotations

import gzip
import json
import logging
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from cluster.governance.vault import Vault, mask
from train_jobs.base_model import generated
from train_jobs.base_model.documents import Document, Turn

logger = logging.getLogger(__name__)

_MAX_TURNS = 10


def _lines(path: Path) -> Iterator[str]:
    with gzip.open(path, "rt", encoding="utf-8") as handle:
        yield from handle


def multidogo_turns(root: Path) -> list[list[str]]:
    """Customer turns of each train conversation, masked; labels are not read."""
    conversations: dict[str, list[str]] = {}
    for path in sorted((root / "multidogo").glob("*.train.tsv.gz")):
        for line in list(_lines(path))[1:]:
            cells = line.rstrip("\n").split("\t")
            if len(cells) == 6 and cells[3].strip():
                conversations.setdefault(cells[0], []).append(mask(cells[3].strip(), Vault()))
    return list(conversations.values())


def taskmaster_dialogues(root: Path) -> list[Document]:
    """Coffee-ordering dialogues and agent steps; an API call is an assistant turn of JSON."""
    documents: list[Document] = []
    for line in _lines(root / "taskmaster" / "tm4_dialogs.jsonl.gz"):
        turns = json.loads(line)["turns"][:_MAX_TURNS]
        documents.append(tuple(Turn(role, text) for role, text in turns))
    for path in sorted((root / "taskmaster").glob("*_ratings.jsonl.gz")):
        for line in _lines(path):
            row = json.loads(line)
            if row["reward"] >= 1.0:
                steps = [*json.loads(row["context"])[-4:], json.loads(row["generation"])]
                documents.append(tuple(_agent_step(step) for step in steps))
    return documents


def _agent_step(step: dict[str, object]) -> Turn:
    if step["role"] == "user":
        return Turn("user", str(step["text"]), 0.5)
    if step["role"] == "api":
        return Turn("system", json.dumps(step["response"])[:400], 0.2)
    return Turn("assistant", str(step["text"]) if "text" in step else json.dumps(step["api"]))


def labelled_utterances(root: Path) -> list[tuple[str, str]]:
    """Utterance and intent of the CLINC150 and Banking77 train splits."""
    with gzip.open(root / "clinc150" / "train.json.gz", "rt", encoding="utf-8") as handle:
        pairs = [(str(text), str(intent)) for text, intent in json.load(handle)]
    for line in list(_lines(root / "banking77" / "train.csv.gz"))[1:]:
        text, _, intent = line.strip().rpartition(",")
        if text and intent:
            pairs.append((text.strip('"'), intent))
    return pairs


def _classify(rng: random.Random, pairs: list[tuple[str, str]]) -> Document:
    """An utterance to its intent, with or without the options spelled out."""
    text, intent = rng.choice(pairs)
    answer = json.dumps({"intent": intent, "slots": {}})
    if rng.random() < 0.6:
        return Turn("user", text), Turn("assistant", answer)
    options = list({intent, *(rng.choice(pairs)[1] for _ in range(rng.randint(1, 4)))})
    rng.shuffle(options)
    choice = f"Options: {', '.join(options)}"
    return Turn("system", choice, 0.1), Turn("user", text, 0.5), Turn("assistant", intent)


def _customer(rng: random.Random, conversations: list[list[str]]) -> Document:
    """Customer turns as they came, or one of them to be copied."""
    turns = rng.choice(conversations)
    if rng.random() < 0.65:
        start = rng.randrange(len(turns))
        return tuple(Turn("user", text) for text in turns[start : start + _MAX_TURNS])
    text = rng.choice(turns)
    words = text.split()
    kind = rng.randrange(3)
    if kind == 0:
        return Turn("user", f"repeat: {text}", 0.5), Turn("assistant", text)
    if kind == 1:
        numbers = [word for word in words if any(char.isdigit() for char in word)]
        return Turn("user", f"numbers in: {text}", 0.5), Turn("assistant", json.dumps(numbers))
    span = words[rng.randrange(len(words)) :][: rng.randint(1, 4)]
    ask = f'in the text "{text}" which words start with {span[0]}'
    return Turn("user", ask, 0.5), Turn("assistant", " ".join(span))


def stream(root: Path, seed: int) -> Iterator[Document]:
    """An endless, seeded mixture of documents.

    Raises:
        FileNotFoundError: a public data set is missing under `root`.
    """
    rng = random.Random(seed)
    conversations = multidogo_turns(root)
    dialogues = taskmaster_dialogues(root)
    pairs = labelled_utterances(root)
    logger.info(
        "corpus: %d conversations, %d dialogues, %d labelled utterances",
        len(conversations),
        len(dialogues),
        len(pairs),
    )
    makers: list[tuple[float, Callable[[], Document]]] = [
        (0.20, lambda: _customer(rng, conversations)),
        (0.12, lambda: rng.choice(dialogues)),
        (0.20, lambda: _classify(rng, pairs)),
        (0.20, lambda: generated.extraction(rng)),
        (0.06, lambda: generated.find_one(rng)),
        (0.07, lambda: generated.repeat(rng)),
        (0.07, lambda: generated.grounded(rng)),
        (0.04, lambda: generated.instruction(rng)),
        (0.04, lambda: generated.dialogue(rng)),
    ]
    weights = [weight for weight, _ in makers]
    while True:
        yield rng.choices(makers, weights)[0][1]()
