"""E-mail addresses, accented and internationalised ones included (RFC 6531)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from cluster.governance.findings import Finding

MAX_LOCAL, _MAX_DOMAIN = 64, 253
# Chinese, Japanese and Korean are written without spaces: beside an ASCII address their letters
# belong to the sentence, and only beside letters of their own to an address.
_CJK = r"\u2e80-\u2fff\u3005-\u30ff\u3100-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
#: Vowel signs and accents, which no class of `re` holds, with the scripts they belong to.
_MARKS = r"\u0300-\u036f\u0591-\u05c7\u0610-\u065f\u0900-\u0eff"
_LETTER = rf"[^\W_{_CJK}]|[{_MARKS}]"
# RFC 5322 allows more, such as `=`; in practice those come before an address, not in it.
_ATOM = rf"(?:{_LETTER}|[._%+'-])"
_LOCAL_REVERSED = re.compile(
    rf"{_ATOM}{{1,{MAX_LOCAL}}}|[{_CJK}](?:{_ATOM}|[{_CJK}]){{0,{MAX_LOCAL - 1}}}"
)
_WORD = rf"(?:{_LETTER})"
_NAME = rf"{_WORD}(?:(?:{_WORD}|-){{0,61}}{_WORD})?"
_DOMAIN = re.compile(
    rf"(?:(?:{_NAME}|[{_CJK}]{{1,63}})\.){{1,8}}"
    rf"(?:xn--[A-Za-z0-9-]{{2,59}}|(?:[^\W\d_{_CJK}]|[{_MARKS}]){{2,63}})(?![A-Za-z0-9])"
    rf"|(?:[{_CJK}]{{1,63}}\.){{1,8}}[{_CJK}]{{2,63}}"
)
#: The sign itself, or as URLs spell it.
_AT = re.compile("@|%40")
#: Characters an address may contain but that before it are punctuation of the sentence.
_LEADING = "'%.-"
#: `logo@2x.png` is a file.
_FILES = (".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp")


def find_emails(text: str) -> Iterator[Finding]:
    """Addresses around each `@`; linear, for it looks at a bounded piece on either side."""
    end = 0
    for at in _AT.finditer(text):
        if at.start() < end:
            continue
        before = text[max(end, at.start() - MAX_LOCAL - 1) : at.start()]
        local = _LOCAL_REVERSED.match(before[::-1])
        domain = _DOMAIN.match(text, at.end(), at.end() + _MAX_DOMAIN)
        if not local or not domain or domain.group().lower().endswith(_FILES):
            continue
        name = local.group()[::-1]
        start = at.start() - len(name.lstrip(_LEADING))
        if start < at.start():
            end = domain.end()
            yield Finding(start, end, "EMAIL")
