"""The admin API: keys, limits, bills, adapters and rollouts of the caller's own tenant.

LiteLLM's paths and field names where they fit, so that its users' tools work. A key with the role
`admin` reaches its own tenant; one with `operator` every tenant. What is another's does not exist.
Decides nothing but who may ask: the control plane does the work and records who asked.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from cluster import durations
from cluster.control.contracts import Control
from cluster.errors import UserError
from cluster.records.keys import PREFIX, KeyRecord, KeyRequest, digest
from cluster.records.limits import Limits, key_scope, tenant_scope
from cluster.records.trace import Refusal
from cluster.types import EVERYONE, AdapterVersion, Principal, Role, checked_name
from serve_app.gateway import delegation, errors
from serve_app.gateway.admin_wire import (
    Appeal,
    DeleteKeys,
    GenerateKey,
    Grantee,
    LimitTenant,
    Reason,
    Revive,
    StartRollout,
    UpdateKey,
    lasting,
)
from serve_app.gateway.auth import Authenticator
from serve_app.gateway.bodies import parse
from serve_app.gateway.errors import Refused

_LIMIT = 1 << 16
_MAX_LISTED = 100


def _who(principal: Principal) -> str:
    return f"{principal.tenant}/{principal.name or 'default'} key {principal.key_id}"


def _require_operator(principal: Principal, why: str) -> None:
    if not principal.may(Role.OPERATOR):
        raise Refused(Refusal(403, "access_denied", why), principal=principal)


def _refuse(principal: Principal, why: str | None) -> None:
    if why is not None:
        raise Refused(Refusal(403, "access_denied", why), principal=principal)


def _unknown(what: str, principal: Principal) -> Refused:
    return Refused(Refusal(404, "not_found", f"{what} not found"), principal=principal)


class _AdminAccess:
    """Who asks, and whether what is asked for is theirs."""

    def __init__(self, authenticate: Authenticator, control: Control) -> None:
        self._authenticate, self.control = authenticate, control

    async def admit(self, request: Request, role: Role = Role.ADMIN) -> Principal:
        return await self._authenticate.admit(request, role)

    def tenant(self, principal: Principal, wanted: str | None) -> str:
        """The tenant that is asked about: the caller's own, or an operator's choice."""
        if wanted is None or wanted == principal.tenant:
            return principal.tenant
        if not principal.may(Role.OPERATOR):
            raise _unknown("tenant", principal)
        try:
            return checked_name(wanted)
        except ValueError as error:
            raise _checked(error) from error

    async def key(self, principal: Principal, named: str) -> KeyRecord:
        """The record of a key that the caller may manage, by id or by secret."""
        if named.startswith(PREFIX):
            found = await self.control.keys.resolve(digest(named))
            named = found.key_id if found else ""
        everywhere = principal.may(Role.OPERATOR)
        for record in await self.control.keys.listed(None if everywhere else principal.tenant):
            if record.key_id == named and delegation.can_manage(principal, record):
                return record
        raise _unknown("key", principal)

    async def adapter(self, principal: Principal, name: str) -> str:
        """The name of an adapter that the caller may manage."""
        owner = await self.control.adapters.owner(name)
        mine = owner == principal.tenant or principal.may(Role.OPERATOR)
        if owner is None or not mine or not delegation.reaches(principal, name):
            raise _unknown("adapter", principal)
        return name


def _instant(moment: float | None) -> str | None:
    return None if moment is None else datetime.fromtimestamp(moment, UTC).isoformat()


def _told(key: KeyRecord) -> dict[str, Any]:
    return {
        "token_id": key.key_id,
        "key_alias": key.alias,
        "team_id": key.tenant,
        "user_id": key.principal,
        "roles": list(key.roles),
        "models": list(key.models),
        "created_at": _instant(key.created_at),
        "expires": _instant(key.expires_at),
        "blocked": key.revoked_at is not None,
        **_told_limits(key.limits),
    }


def _told_limits(limits: Limits) -> dict[str, Any]:
    return {
        "rpm_limit": limits.rpm,
        "tpm_limit": limits.tpm,
        "max_budget": limits.max_usd,
        "budget_duration": durations.written(limits.period_s) if limits.period_s else None,
    }


def _checked(error: ValueError) -> Refused:
    if isinstance(error, ValidationError):
        return Refused(errors.invalid(error))
    return Refused(Refusal(400, "invalid_value", str(error)))


def admin_routes(authenticate: Authenticator, control: Control) -> list[Route]:
    """Every route of the admin API."""
    admin = _AdminAccess(authenticate, control)
    return [
        *_key_routes(admin),
        *_change_routes(admin),
        *_adapter_routes(admin),
        *_rollout_routes(admin),
        *_bills(admin),
    ]


def _key_routes(admin: _AdminAccess) -> list[Route]:
    async def generate(request: Request) -> Response:
        principal = await admin.admit(request)
        body = await parse(request, GenerateKey, _LIMIT)
        tenant = admin.tenant(principal, body.team_id)
        if Role.OPERATOR in body.roles and not principal.may(Role.OPERATOR):
            refusal = Refusal(403, "access_denied", "only an operator makes operators", "roles")
            raise Refused(refusal, principal=principal)
        if body.metadata and not principal.may(Role.OPERATOR):
            # Policy relies on them: a tenant must not give itself a tier.
            refusal = Refusal(403, "access_denied", "only an operator gives attributes", "metadata")
            raise Refused(refusal, principal=principal)
        try:
            wanted = KeyRequest(
                tenant=tenant,
                roles=tuple(body.roles),
                principal=body.user_id,
                alias=body.key_alias,
                models=tuple(body.models),
                attributes=body.metadata,
                lasts_s=lasting(body.duration),
                limits=body.limits(Limits()),
            )
        except ValueError as error:
            raise _checked(error) from error
        _refuse(principal, delegation.exceeds(principal, wanted, time.time()))
        operator = principal.may(Role.OPERATOR)
        issued = await admin.control.keys.issue(wanted, _who(principal), by_operator=operator)
        record = await admin.key(principal, issued.key_id)
        return JSONResponse({"key": issued.secret, **_told(record)})

    async def delete(request: Request) -> Response:
        principal = await admin.admit(request)
        body = await parse(request, DeleteKeys, _LIMIT)
        # All of them are looked up before the first one is ended.
        found = [await admin.key(principal, named) for named in body.keys]
        for record in found:
            await admin.control.keys.revoke(record.key_id, _who(principal))
        return JSONResponse({"deleted_keys": [record.key_id for record in found]})

    async def listed(request: Request) -> Response:
        principal = await admin.admit(request)
        tenant = admin.tenant(principal, request.query_params.get("team_id"))
        found = await admin.control.keys.listed(tenant)
        whole = request.query_params.get("return_full_object") == "true"
        found = [key for key in found if delegation.can_manage(principal, key)]
        keys = [_told(key) if whole else key.key_id for key in found]
        return JSONResponse({"keys": keys, "total_count": len(keys)})

    return [
        Route("/key/generate", generate, methods=["POST"]),
        Route("/key/delete", delete, methods=["POST"]),
        Route("/key/list", listed, methods=["GET"]),
    ]


def _change_routes(admin: _AdminAccess) -> list[Route]:
    async def update(request: Request) -> Response:
        principal = await admin.admit(request)
        body = await parse(request, UpdateKey, _LIMIT)
        record = await admin.key(principal, body.key)
        try:
            limits, wanted = body.limits(record.limits), body.change()
        except ValueError as error:
            raise _checked(error) from error
        if wanted is not None and wanted.widens and record.attributes:
            _require_operator(principal, "an operator gave this key attributes, and its bounds")
        if wanted is not None:
            _refuse(principal, delegation.exceeds(principal, wanted, time.time()))
        if limits != record.limits:
            _refuse(principal, delegation.has_limits(principal))
        _refuse(principal, delegation.lifts(principal, record, limits, wanted, time.time()))
        who, operator = _who(principal), principal.may(Role.OPERATOR)
        if wanted is not None:
            await admin.control.keys.change(record.key_id, wanted, who, by_operator=operator)
        if limits != record.limits:
            await admin.control.ledger.set_limits(
                key_scope(record.key_id), limits, who, by_operator=operator
            )
        return JSONResponse(_told(await admin.key(principal, record.key_id)))

    async def info(request: Request) -> Response:
        named = request.query_params.get("key")
        principal = await admin.admit(request, Role.ADMIN if named else Role.INFERENCE)
        record = await admin.key(principal, named or principal.key_id)
        spend = round(await admin.control.usage.key_spend(record.key_id), 6)
        return JSONResponse({"key": record.key_id, "info": {**_told(record), "spend": spend}})

    async def limit_tenant(request: Request) -> Response:
        principal = await admin.admit(request, Role.OPERATOR)
        body = await parse(request, LimitTenant, _LIMIT)
        try:
            limits = body.limits(await admin.control.ledger.limits(tenant_scope(body.team_id)))
        except ValueError as error:
            raise _checked(error) from error
        await admin.control.ledger.set_limits(
            tenant_scope(body.team_id), limits, _who(principal), by_operator=True
        )
        return JSONResponse({"team_id": body.team_id, **_told_limits(limits)})

    return [
        Route("/key/update", update, methods=["POST"]),
        Route("/key/info", info, methods=["GET"]),
        Route("/team/update", limit_tenant, methods=["POST"]),
    ]


def _adapter_routes(admin: _AdminAccess) -> list[Route]:
    async def listed(request: Request) -> Response:
        principal = await admin.admit(request)
        table = await admin.control.serving.table()
        everywhere = principal.may(Role.OPERATOR)
        rows = []
        for record in await admin.control.adapters.listed():
            tenants = table.access.get(record.id.name, frozenset())
            mine = everywhere or principal.tenant in tenants or EVERYONE in tenants
            if mine and delegation.reaches(principal, record.id.name):
                killed = record.id.name in table.killed
                rows.append(
                    {
                        "version": str(record.id),
                        "state": "killed" if killed and record.state == "live" else record.state,
                        "reason": record.retrain or record.reason,
                        "metric": record.manifest.evaluation.primary,
                        "value": record.manifest.evaluation.headline.value,
                        "digest": record.digest,
                    }
                )
        return JSONResponse({"data": rows})

    async def card(request: Request) -> Response:
        principal = await admin.admit(request)
        try:
            version = AdapterVersion.parse(request.path_params["version"])
        except ValueError as error:
            raise _checked(error) from error
        await admin.adapter(principal, version.name)
        return PlainTextResponse(
            await admin.control.adapters.card(version), media_type="text/markdown"
        )

    async def kill(request: Request) -> Response:
        principal = await admin.admit(request)
        body = await parse(request, Reason, _LIMIT)
        name = await admin.adapter(principal, request.path_params["name"])
        return JSONResponse(
            asdict(await admin.control.serving.kill(name, body.reason, _who(principal)))
        )

    async def revive(request: Request) -> Response:
        principal = await admin.admit(request)
        body = await parse(request, Revive, _LIMIT, optional=True)
        name = await admin.adapter(principal, request.path_params["name"])
        version = None if body.version is None else AdapterVersion(name, body.version)
        report = await admin.control.serving.revive(name, _who(principal), version)
        return JSONResponse(asdict(report) if report else None)

    async def change(request: Request, granted: bool) -> Response:
        principal = await admin.admit(request)
        name = await admin.adapter(principal, request.path_params["name"])
        if granted:
            # What a tenant reaches may answer its `auto` requests: it is no other tenant's to give.
            _require_operator(principal, "only an operator lets another tenant in")
        body = await parse(request, Grantee, _LIMIT)
        await admin.control.adapters.grant(name, body.tenant, granted, _who(principal))
        return JSONResponse({"adapter": name, "tenant": body.tenant, "granted": granted})

    async def grant(request: Request) -> Response:
        return await change(request, True)

    async def withdraw(request: Request) -> Response:
        return await change(request, False)

    return [
        Route("/v1/adapters", listed, methods=["GET"]),
        Route("/v1/adapters/{version}/card", card, methods=["GET"]),
        Route("/v1/adapters/{name}/kill", kill, methods=["POST"]),
        Route("/v1/adapters/{name}/revive", revive, methods=["POST"]),
        Route("/v1/adapters/{name}/grant", grant, methods=["POST"]),
        Route("/v1/adapters/{name}/withdraw", withdraw, methods=["POST"]),
    ]


def _rollout_routes(admin: _AdminAccess) -> list[Route]:
    async def start(request: Request) -> Response:
        principal = await admin.admit(request)
        body = await parse(request, StartRollout, _LIMIT)
        try:
            version = AdapterVersion.parse(body.version)
        except ValueError as error:
            raise _checked(error) from error
        await admin.adapter(principal, version.name)
        rollout = await admin.control.rollouts.start(version, body.plan, _who(principal))
        return JSONResponse(rollout.as_json(names=False), 201)

    async def listed(request: Request) -> Response:
        principal = await admin.admit(request)
        owner = None if principal.may(Role.OPERATOR) else principal.tenant
        found = [
            rollout
            for rollout in await admin.control.rollouts.listed(_MAX_LISTED, owner)
            if delegation.reaches(principal, rollout.adapter)
        ]
        # Those who are set aside may be another tenant's.
        names = principal.may(Role.OPERATOR)
        return JSONResponse({"data": [rollout.as_json(names=names) for rollout in found]})

    async def end(request: Request) -> Response:
        principal = await admin.admit(request)
        body = await parse(request, Reason, _LIMIT)
        name = await admin.adapter(principal, request.path_params["name"])
        await admin.control.rollouts.end(name, body.reason, _who(principal))
        return JSONResponse({"adapter": name, "ended": True})

    async def promote(request: Request) -> Response:
        principal = await admin.admit(request)
        name = await admin.adapter(principal, request.path_params["name"])
        await admin.control.rollouts.promote(name, _who(principal))
        return JSONResponse({"adapter": name, "promoted": True})

    async def appeal(request: Request) -> Response:
        principal = await admin.admit(request, Role.OPERATOR)
        body = await parse(request, Appeal, _LIMIT)
        try:
            version = AdapterVersion.parse(body.version)
        except ValueError as error:
            raise _checked(error) from error
        await admin.control.rollouts.appeal(version, body.reason, _who(principal))
        return JSONResponse({"version": body.version, "state": "passed"})

    return [
        Route("/v1/rollouts/appeal", appeal, methods=["POST"]),
        Route("/v1/rollouts", start, methods=["POST"]),
        Route("/v1/rollouts", listed, methods=["GET"]),
        Route("/v1/rollouts/{name}/end", end, methods=["POST"]),
        Route("/v1/rollouts/{name}/promote", promote, methods=["POST"]),
    ]


def _bills(admin: _AdminAccess) -> list[Route]:
    async def bill(request: Request) -> Response:
        principal = await admin.admit(request)
        query = request.query_params
        tenant = admin.tenant(principal, query.get("team_id"))
        now = time.time()
        try:
            start = now - durations.seconds(query.get("since", "30d"))
        except ValueError as error:
            raise UserError(str(error)) from error
        # A key that is limited to adapters gets the bill of those alone.
        adapters = sorted(principal.models)
        return JSONResponse(await admin.control.usage.bill(tenant, start, now + 1, None, adapters))

    return [Route("/v1/usage", bill, methods=["GET"])]
