"""IP addresses, by the rules of the standard library's `ipaddress`."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from cluster.governance.detectors.labels import Label, label_before
from cluster.governance.findings import Finding

_OCTET = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"
_V4 = re.compile(
    rf"(?<![0-9A-Za-z.]){_OCTET}(?:\.{_OCTET}){{3}}(?![0-9A-Za-z]|\.\d|-[A-Za-z]|\.(?:tar|zip|whl|jar)\b)"
)
_V6 = re.compile(
    rf"(?:(?<![0-9A-Za-z:.])|(?<=IPv6:))[0-9A-Fa-f]{{0,4}}:(?:[0-9A-Fa-f]{{0,4}}:){{1,7}}"
    rf"(?:{_OCTET}(?:\.{_OCTET}){{3}}|[0-9A-Fa-f]{{0,4}})(?![0-9A-Za-z:])"
)
#: `Chrome/120.0.0.0`, and a number in a path.
_PRODUCT = re.compile(
    r"[A-Za-z0-9_)]/\Z|[vV]\Z|[vV]ersion\W{0,3}\Z|[=<>~!]=\s?\Z|[~^@]\Z|[A-Za-z]-\Z"
)
#: Hexadecimal digits of the shortest address that is somebody's.
_FEW = 5


def find_addresses(text: str) -> Iterator[Finding]:
    """IPv4 and IPv6 addresses; a port, a prefix length or brackets stay outside."""
    yield from _v6(text)
    yield from _v4(text)


def _v4(text: str) -> Iterator[Finding]:
    if text.count(".") < 3:
        return
    for match in _V4.finditer(text):
        before = text[max(0, match.start() - 12) : match.start()]
        label, direct = label_before(text, match.start())
        if _PRODUCT.search(before) and not before.endswith("//"):
            continue
        if not (direct and label is Label.VERSION):
            yield Finding(*match.span(), "IP")


def _v6(text: str) -> Iterator[Finding]:
    if text.count(":") < 2:
        return
    for match in _V6.finditer(text):
        value = match.group()
        if sum(char != ":" for char in value) < _FEW or not any(map(str.isdigit, value)):
            continue  # `a::b` and `x[1::2]` are code
        if any(_mixed(group) for group in value.split(":")):
            continue  # and so is `Face::add2`
        try:
            ipaddress.IPv6Address(value)
        except ValueError:
            continue
        yield Finding(*match.span(), "IP")


def _mixed(group: str) -> bool:
    return group.isalpha() and not (group.islower() or group.isupper())
