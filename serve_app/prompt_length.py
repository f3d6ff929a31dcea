"""How long a prompt's text can be at most, before anything of it is worked on."""

from __future__ import annotations

import json
from pathlib import Path

_TOKENIZER = "tokenizer.json"
_LEAST = 4096


def most_characters(model: Path, window: int) -> int | None:
    """Characters beyond which no text fits a window of `window` tokens of the model in `model`.

    That is so many of the tokenizer's longest token. None where the model's folder does not say.
    """
    path = model / _TOKENIZER
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = found["model"].get("vocab", ())
    # Of a unigram model each entry is a token and its score.
    tokens = [one if isinstance(one, str) else one[0] for one in vocabulary]
    tokens += [one["content"] for one in found.get("added_tokens", ())]
    return max(_LEAST, window * max(map(len, tokens), default=_LEAST))
