"""Where a run of digits is part of something else: a URL's path, an identifier, a file's name."""

from __future__ import annotations

import re

from cluster.governance.findings import LOOK_BEHIND

_WORD_BEFORE = re.compile(r"[A-Za-z]{1,20}\Z")
_URL_PATH = re.compile(
    r"(?:[A-Za-z][A-Za-z0-9+.-]{1,20}://|www\.|(?:[A-Za-z0-9-]{1,63}\.){1,5}[A-Za-z]{2,24}/)[^\s?#]*\Z"
)
_FILE_PATH = re.compile(r"(?:^|[\s\"'(=])(?:[A-Za-z]:)?[~.]{0,2}[/\\][^\s\"']*\Z")
_FILE_END = re.compile(
    r"[\w-]{0,40}\.(?:pdf|docx?|xlsx?|csv|txt|jsonl?|log|png|jpe?g|gif|svg|webp|mp[34]|zip|gz|tar"
    r"|html?|xml|ya?ml|py|sql|bak|parquet)\b",
    re.IGNORECASE,
)
#: Words that may be written together with the number they announce.
GLUED = frozenset(
    {"tel", "phone", "call", "mobile", "mob", "cell", "fax", "ph", "t", "m", "p", "f"}
)


def word_before(text: str, start: int) -> str:
    """The ASCII letters that directly precede `start`, in lower case."""
    match = _WORD_BEFORE.search(text[max(0, start - 20) : start])
    return match.group().lower() if match else ""


def in_path(text: str, start: int, end: int) -> bool:
    """Whether `text[start:end]` is part of a URL's path or a file's name."""
    left = text[max(0, start - LOOK_BEHIND) : start]
    space = max(left.rfind(" "), left.rfind("\n"), left.rfind("\t"))
    if space < 0 and len(left) == LOOK_BEHIND:
        return False  # too long for a path: when in doubt, the value is personal data
    token = left[space + 1 :]
    if _URL_PATH.search(token) or _FILE_PATH.search(left[max(0, space) :]):
        return True
    return _FILE_END.match(text, end, end + 50) is not None


def in_identifier(text: str, start: int, end: int) -> bool:
    """Whether ASCII letters, or a hyphen and a group with letters, are joined to the digits."""
    before, after = text[max(0, start - 40) : start], text[end : end + 40]
    if re.match(r"[A-Za-z]", after) or re.match(r"-[0-9]*[A-Za-z]", after):
        return True
    if re.search(r"[A-Za-z]\Z", before):
        return word_before(text, start) not in GLUED
    joined = re.search(r"([A-Za-z0-9]*)-\Z", before)
    if joined is None or not re.search(r"[A-Za-z]", joined.group(1)):
        return False
    return joined.group(1).lower() not in GLUED
