"""What one key may do to others: give no more than it has, and see no more than it reaches.

A key may be limited to adapters, to a time and to a budget. Were it to make another without those,
they would limit nobody. Decisions only.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from cluster.records.keys import END, LIMITS, MODELS, KeyChange, KeyRecord, KeyRequest
from cluster.records.limits import Limits, key_scope, within
from cluster.types import Principal, Role


def covers(principal: Principal, adapter: str) -> bool:
    """Whether the principal's key is not kept from `adapter`."""
    return not principal.models or adapter in principal.models


def manages(principal: Principal, key: KeyRecord) -> bool:
    """Whether `key` is one that the principal may see, change and end."""
    # An operator's key is none of its tenant's admins' business.
    mine = key.tenant == principal.tenant and Role.OPERATOR not in key.roles
    return (mine or principal.may(Role.OPERATOR)) and _within(principal, key.models)


def bounded(principal: Principal) -> str | None:
    """Why the principal may bound no key, or none otherwise; None where it may."""
    if key_scope(principal.key_id) in principal.limited:
        return "this key has limits of its own: it gives none to others, nor itself others"
    return None


def beyond(principal: Principal, wanted: KeyRequest | KeyChange, now: float) -> str | None:
    """Why the principal may not give another key what is wanted; None where it may."""
    new = isinstance(wanted, KeyRequest)
    if new and (why := bounded(principal)) is not None:
        return why
    if wanted.models is not None and not _within(principal, wanted.models):
        return f"this key reaches {', '.join(sorted(principal.models))}: name some of them"
    ends = principal.expires_at
    if ends is None or not (new or "lasts_s" in wanted.model_fields_set):
        return None
    if wanted.lasts_s is None or now + wanted.lasts_s > ends:
        until = datetime.fromtimestamp(ends, UTC)
        return f"this key ends at {until:%Y-%m-%d %H:%M} UTC: no other may last longer"
    return None


def lifts(
    principal: Principal, record: KeyRecord, limits: Limits, wanted: KeyChange | None, now: float
) -> str | None:
    """Why the principal may not change `record` so: a bound that an operator set would be wider;
    None where it may."""
    if principal.may(Role.OPERATOR):
        return None
    end, models = record.expires_at, set(record.models)
    if LIMITS in record.held and not within(limits, record.limits):
        return "an operator set this key's limits: only one may widen or lift them"
    if wanted is None:
        return None
    named = wanted.models
    # None named is all of them.
    more = named is not None and (not named or not models.issuperset(named))
    if MODELS in record.held and more:
        return "an operator set which adapters this key reaches: only one may add others"
    longer = wanted.lasts_s is None or end is None or now + wanted.lasts_s > end
    if END in record.held and "lasts_s" in wanted.model_fields_set and longer:
        return "an operator set when this key ends: only one may have it last longer"
    return None


def _within(principal: Principal, models: Sequence[str]) -> bool:
    """Whether a key for `models` reaches no more than the principal's; one for none reaches all."""
    return not principal.models or (bool(models) and principal.models.issuperset(models))
