"""Delegation: a key gives no other key more than it has, and sees no more than it reaches.

Without this a key limited to adapters, a time or a budget could make another without those limits.
Decisions only.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from cluster.records.keys import END, LIMITS, MODELS, KeyChange, KeyRecord, KeyRequest
from cluster.records.limits import Limits, key_scope, within
from cluster.types import Principal, Role


def reaches(principal: Principal, adapter: str) -> bool:
    """Whether the principal's key reaches `adapter`."""
    return not principal.models or adapter in principal.models


def can_manage(principal: Principal, key: KeyRecord) -> bool:
    """Whether the principal may see, change and revoke `key`."""
    # An operator's key is none of its tenant's admins' business.
    mine = key.tenant == principal.tenant and Role.OPERATOR not in key.roles
    return (mine or principal.may(Role.OPERATOR)) and _within(principal, key.models)


def has_limits(principal: Principal) -> str | None:
    """Why the principal may not set limits; None where it may."""
    if key_scope(principal.key_id) in principal.limited:
        return "this key has limits: a key with limits cannot set limits"
    return None


def exceeds(principal: Principal, wanted: KeyRequest | KeyChange, now: float) -> str | None:
    """Why the principal may not grant what is wanted to another key; None where it may."""
    new = isinstance(wanted, KeyRequest)
    if new and (why := has_limits(principal)) is not None:
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
