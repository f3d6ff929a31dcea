"""Tables of the registry. SQLAlchemy models only; no query lives here."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Float,
    ForeignKey,
    Integer,
    String,
    Text,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Table(DeclarativeBase):
    """Base of every table."""

    type_annotation_map = {dict[str, Any]: JSON, list[str]: JSON}


class Tenant(Table):
    """A company or a department whose traffic, adapters and bills are kept apart."""

    __tablename__ = "tenants"
    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    created_at: Mapped[float] = mapped_column(Float)
    suspended_at: Mapped[float | None] = mapped_column(Float)


class PrincipalRow(Table):
    """A person or a service of a tenant: who acts when one of its keys is used."""

    __tablename__ = "principals"
    __table_args__ = (UniqueConstraint("tenant", "name"),)
    principal_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.name"))
    name: Mapped[str] = mapped_column(String(63))
    created_at: Mapped[float] = mapped_column(Float)


class ApiKey(Table):
    """A key's digest and what it may do; the key itself is never stored."""

    __tablename__ = "api_keys"
    key_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    alias: Mapped[str] = mapped_column(String(63))
    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.name"), index=True)
    principal: Mapped[str] = mapped_column(ForeignKey("principals.principal_id"))
    roles: Mapped[list[str]]
    models: Mapped[list[str]]
    attributes: Mapped[dict[str, Any]]
    held: Mapped[list[str]]
    """Names of the bounds that an operator set: only one may widen them."""
    created_at: Mapped[float] = mapped_column(Float)
    expires_at: Mapped[float | None] = mapped_column(Float)
    revoked_at: Mapped[float | None] = mapped_column(Float)


class BaseModel(Table):
    """A base model that adapters stand on, with what its licence lets it be used for.

    The one served last is the one that serves.
    """

    __tablename__ = "base_models"
    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(128))
    path: Mapped[str] = mapped_column(Text)
    licence: Mapped[str] = mapped_column(String(64))
    permitted_use: Mapped[str] = mapped_column(Text)
    created_at: Mapped[float] = mapped_column(Float)
    served_at: Mapped[float] = mapped_column(Float)


class Adapter(Table):
    """An adapter's name, whose it is, and whether it is switched off."""

    __tablename__ = "adapters"
    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    owner: Mapped[str] = mapped_column(ForeignKey("tenants.name"), index=True)
    created_at: Mapped[float] = mapped_column(Float)
    killed_at: Mapped[float | None] = mapped_column(Float)
    kill_reason: Mapped[str] = mapped_column(Text)


class Grant(Table):
    """A tenant beside the owner that reaches an adapter; `*` is every tenant."""

    __tablename__ = "grants"
    adapter: Mapped[str] = mapped_column(ForeignKey("adapters.name"), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(63), primary_key=True)
    granted_at: Mapped[float] = mapped_column(Float)


class Version(Table):
    """One immutable adapter version; `int_id` is the id the engine knows it by."""

    __tablename__ = "adapter_versions"
    __table_args__ = (UniqueConstraint("name", "version"),)
    int_id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    name: Mapped[str] = mapped_column(ForeignKey("adapters.name"), index=True)
    version: Mapped[int] = mapped_column(Integer)
    state: Mapped[str] = mapped_column(String(16), index=True)
    path: Mapped[str] = mapped_column(Text)
    digest: Mapped[str] = mapped_column(String(64))
    base: Mapped[str] = mapped_column(ForeignKey("base_models.digest"))
    parent: Mapped[str | None] = mapped_column(String(80))
    dataset: Mapped[str] = mapped_column(String(80))
    dataset_digest: Mapped[str] = mapped_column(String(64))
    run_id: Mapped[str] = mapped_column(String(128))
    reason: Mapped[str] = mapped_column(Text)
    retrain: Mapped[str] = mapped_column(Text)
    manifest: Mapped[dict[str, Any]]
    created_at: Mapped[float] = mapped_column(Float)


class GateRow(Table):
    """The gate rules of one adapter's candidates; an adapter without a row has the default."""

    __tablename__ = "gate_rules"
    adapter: Mapped[str] = mapped_column(String(63), primary_key=True)
    rules: Mapped[dict[str, Any]]
    updated_at: Mapped[float] = mapped_column(Float)


class RolloutRow(Table):
    """A candidate on its way to the users; `state` is the whole of it."""

    __tablename__ = "rollouts"
    rollout_id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    adapter: Mapped[str] = mapped_column(ForeignKey("adapters.name"), index=True)
    candidate: Mapped[int] = mapped_column(ForeignKey("adapter_versions.int_id"))
    status: Mapped[str] = mapped_column(String(16), index=True)
    state: Mapped[dict[str, Any]]
    created_at: Mapped[float] = mapped_column(Float)
    updated_at: Mapped[float] = mapped_column(Float)


class RolloutAnswer(Table):
    """An answer that a user saw of a version on trial, and which of its outcomes have counted."""

    __tablename__ = "rollout_answers"
    number: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True
    )
    trace_id: Mapped[str] = mapped_column(String(64), unique=True)
    rollout_id: Mapped[int] = mapped_column(ForeignKey("rollouts.rollout_id"), index=True)
    phase: Mapped[int] = mapped_column(Integer)
    side: Mapped[str] = mapped_column(String(16))
    user_group: Mapped[int] = mapped_column(Integer)
    account: Mapped[str] = mapped_column(String(160))
    counted: Mapped[list[str]]


class Dataset(Table):
    """One immutable dataset version."""

    __tablename__ = "datasets"
    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    version: Mapped[int] = mapped_column(Integer, primary_key=True)
    path: Mapped[str] = mapped_column(Text)
    digest: Mapped[str] = mapped_column(String(64))
    manifest: Mapped[dict[str, Any]]
    created_at: Mapped[float] = mapped_column(Float)


class Label(Table):
    """One trace waiting for an expert, or labelled by one; a trace enters once."""

    __tablename__ = "labels"
    trace_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(63), index=True)
    reason: Mapped[str] = mapped_column(String(32))
    state: Mapped[str] = mapped_column(String(16), index=True)
    task: Mapped[dict[str, Any]]
    claimed_by: Mapped[str] = mapped_column(String(64), default="")
    claimed_until: Mapped[float] = mapped_column(Float, default=0.0)
    adapter: Mapped[str] = mapped_column(String(63), default="", index=True)
    answer: Mapped[str] = mapped_column(Text, default="")
    rationale: Mapped[str] = mapped_column(Text, default="")
    annotator: Mapped[str] = mapped_column(String(64), default="")
    created_at: Mapped[float] = mapped_column(Float)
    labelled_at: Mapped[float | None] = mapped_column(Float)


class WriterRow(Table):
    """A writer of the audit log, and the latest of its entries that is known."""

    __tablename__ = "writers"
    writer: Mapped[str] = mapped_column(String(128), primary_key=True)
    changes: Mapped[bool] = mapped_column(Boolean)
    """Whether it records what the control plane changed, and not requests."""
    entries: Mapped[int] = mapped_column(BigInteger)
    head: Mapped[str] = mapped_column(String(64))
    """Hash of the last of them; empty where only their number is known."""
    updated_at: Mapped[float] = mapped_column(Float)


class TokenRow(Table):
    """Tokens one key used of one version in a range of a writer's chain. Append-only."""

    __tablename__ = "token_use"
    writer: Mapped[str] = mapped_column(String(128), primary_key=True)
    first: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    tenant: Mapped[str] = mapped_column(String(63), primary_key=True)
    key_id: Mapped[str] = mapped_column(String(32), primary_key=True, index=True)
    version: Mapped[str] = mapped_column(String(128), primary_key=True)
    after: Mapped[int] = mapped_column(BigInteger)
    at: Mapped[float] = mapped_column(Float, index=True)
    requests: Mapped[int] = mapped_column(BigInteger)
    cached: Mapped[int] = mapped_column(BigInteger)
    input_tokens: Mapped[int] = mapped_column(BigInteger)
    output_tokens: Mapped[int] = mapped_column(BigInteger)


class WorkRow(Table):
    """Other work done for a tenant, such as training. Append-only."""

    __tablename__ = "work"
    kind: Mapped[str] = mapped_column(String(32), primary_key=True)
    reference: Mapped[str] = mapped_column(String(128), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(63), index=True)
    amount: Mapped[float] = mapped_column(Float)
    at: Mapped[float] = mapped_column(Float)


class LimitRow(Table):
    """What one tenant or key may use; a scope without a row is not bounded."""

    __tablename__ = "limits"
    scope: Mapped[str] = mapped_column(String(96), primary_key=True)
    rpm: Mapped[int | None] = mapped_column(BigInteger)
    tpm: Mapped[int | None] = mapped_column(BigInteger)
    max_usd: Mapped[float | None] = mapped_column(Float)
    period_s: Mapped[float | None] = mapped_column(Float)
    since: Mapped[float] = mapped_column(Float)


class PriceRow(Table):
    """The price book in force from `at` until the next one's. Append-only."""

    __tablename__ = "price_books"
    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    at: Mapped[float] = mapped_column(Float)
    book: Mapped[dict[str, Any]]


class Event(Table):
    """What the control plane did and for whom. Append-only; its chained copy is the audit log's."""

    __tablename__ = "events"
    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    at: Mapped[float] = mapped_column(Float)
    kind: Mapped[str] = mapped_column(String(32), index=True)
    subject: Mapped[str] = mapped_column(String(128))
    actor: Mapped[str] = mapped_column(String(128))
    detail: Mapped[dict[str, Any]]
