"""Tables of the registry. SQLAlchemy models only; no query lives here."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, Float, Integer, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Table(DeclarativeBase):
    """Base of every table."""

    type_annotation_map = {dict[str, Any]: JSON, list[str]: JSON}


class ApiKey(Table):
    """A key's digest and what it may do; the key itself is never stored."""

    __tablename__ = "api_keys"
    key_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    tenant: Mapped[str] = mapped_column(String(64))
    roles: Mapped[list[str]]
    attributes: Mapped[dict[str, Any]]
    created_at: Mapped[float] = mapped_column(Float)
    revoked_at: Mapped[float | None] = mapped_column(Float)


class Adapter(Table):
    """One immutable adapter version; `int_id` is the id the engine knows it by."""

    __tablename__ = "adapter_versions"
    __table_args__ = (UniqueConstraint("name", "version"),)
    int_id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    name: Mapped[str] = mapped_column(String(63), index=True)
    version: Mapped[int] = mapped_column(Integer)
    state: Mapped[str] = mapped_column(String(16))
    path: Mapped[str] = mapped_column(Text)
    digest: Mapped[str] = mapped_column(String(64))
    reason: Mapped[str] = mapped_column(Text, default="")
    manifest: Mapped[dict[str, Any]]
    created_at: Mapped[float] = mapped_column(Float)


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
    """One trace waiting for an expert, or labelled by one; a trace and reason enter once."""

    __tablename__ = "labels"
    trace_id: Mapped[str] = mapped_column(String(64), primary_key=True)
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


class Event(Table):
    """What the control plane did: gates, swaps, refusals. Append-only."""

    __tablename__ = "events"
    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    at: Mapped[float] = mapped_column(Float)
    kind: Mapped[str] = mapped_column(String(32), index=True)
    subject: Mapped[str] = mapped_column(String(128))
    detail: Mapped[dict[str, Any]]
