"""Opens the registry's database: SQLite in WAL mode, or PostgreSQL by URL; migrates it first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from cluster.errors import ConfigError, ConflictError

_MIGRATIONS = Path(__file__).with_name("migrations")
_DIALECTS = ("sqlite", "postgresql")
#: PostgreSQL's lock that keeps two control planes from migrating at once: any number of our own.
_LOCK = 0x4865616472616365
#: PostgreSQL's: seconds to connect, and milliseconds until sent data is acknowledged. A host that
#: does not answer must not hold the control plane up for minutes.
_WITHIN = {"connect_timeout": 5, "tcp_user_timeout": 5000}


def open_database(url: str) -> Engine:
    """An engine on `url`, migrated to the newest schema. `sqlite:///relative.db` makes its folder.

    Raises:
        ConfigError: `url` is not one of SQLite's or PostgreSQL's.
        ConflictError: the database was made by a newer Headrace, or is somebody else's.
    """
    engine = _engine(url)
    if engine.dialect.name == "sqlite":
        if engine.url.database:
            Path(engine.url.database).parent.mkdir(parents=True, exist_ok=True)
        event.listen(engine, "connect", _sqlite_pragmas)
    with engine.begin() as connection:
        _migrate(connection)
    return engine


def reading(url: str) -> Engine:
    """An engine on a registry that is there, for reading only: nothing is made or migrated.

    Raises:
        ConfigError: `url` is not one of SQLite's or PostgreSQL's, or names no file.
    """
    engine = _engine(url)
    if engine.dialect.name == "sqlite" and not Path(engine.url.database or "").is_file():
        raise ConfigError(f"there is no registry at {engine.url.database}")
    return engine


def _engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
        name = parsed.get_backend_name()
        if name not in _DIALECTS:
            raise ConfigError(f"the registry runs on SQLite or PostgreSQL, not on {name!r}")
        if name == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
            within = {name: value for name, value in _WITHIN.items() if name not in parsed.query}
            return create_engine(parsed, pool_pre_ping=True, connect_args=within)
        return create_engine(parsed)
    except (ArgumentError, NoSuchModuleError) as error:
        # SQLAlchemy's own message repeats the URL, password and all.
        raise ConfigError("the registry's URL is not one: write postgresql://...") from error


def _migrate(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    at = MigrationContext.configure(connection).get_current_revision()
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if at is None and "adapter_versions" in inspect(connection).get_table_names():
        raise ConflictError("the registry has tables but no schema version: move it away")
    if at is not None and at not in known:
        raise ConflictError(f"the registry is of a newer Headrace (schema {at}): update this one")
    command.upgrade(config, "head")


def _sqlite_pragmas(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    # A commit outlives a power cut: a kill or a revoked key must not come undone.
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA busy_timeout=5000")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()
