"""The registry on SQLite and on a real PostgreSQL: schema, keys, grants, base models, events."""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from pydantic import TypeAdapter
from sqlalchemy import Engine, func, select, text
from sqlalchemy.orm import Session

from cluster import adapters, audit, base_models
from cluster.audit import ChainWriter
from cluster.errors import ConfigError, ConflictError, DataError, NotFoundError
from cluster.records.dataset import DatasetManifest
from cluster.records.keys import KeyRequest, digest
from cluster.records.model import BaseModelInfo
from cluster.registry import access, answers, bases, card, events, keys, tenants, versions, writers
from cluster.registry.db import open_database
from cluster.registry.schema import RolloutAnswer, RolloutRow, Table
from cluster.rollout.evidence import Evidence, Moments, VariantStats
from cluster.rollout.plan import Phase, RolloutPlan
from cluster.rollout.state import Rollout, Status
from cluster.types import AdapterVersion, Role, VersionState

Change = Callable[[], AbstractContextManager[Session]]
ONE = BaseModelInfo(name="one", path="/one", digest="0" * 64, licence="apache-2.0")
TWO = BaseModelInfo(name="two", path="/two", digest="2" * 64)
BY: dict[str, Any] = {"actor": "test", "now": 100.0}


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    engine = open_database(url)
    yield engine
    engine.dispose()


@pytest.fixture
def change(engine: Engine, tmp_path: Path) -> Iterator[Change]:
    writer = ChainWriter(tmp_path / "audit" / audit.CONTROL, "control-test")
    with Session(engine) as tx, tx.begin():
        writers.register(tx, writer.writer, changes=True, now=0.0)
    yield partial(events.recorded, engine, writer)
    writer.close()


def test_the_migrations_make_the_models(url: str) -> None:
    open_database(url).dispose()
    engine = open_database(url)  # a second start finds nothing to do
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Table.metadata) == []
    engine.dispose()


def test_what_was_seen_of_a_rollout_is_put_to_its_phases(
    url: str, tmp_path: Path, make_adapter: Callable[..., Path]
) -> None:
    """A registry from before evidence was kept by phases, with a rollout in its third phase."""
    engine = open_database(url)
    writer = ChainWriter(tmp_path / "audit" / audit.CONTROL, "control-test")
    with Session(engine) as tx, tx.begin():
        writers.register(tx, writer.writer, changes=True, now=0.0)
    plan = RolloutPlan(phases=(Phase(percent=10, shadow=True), Phase(percent=5), Phase(percent=50)))
    rollout = Rollout(1, AdapterVersion("inventory", 1), None, plan, Status.RUNNING, phase=2)
    part, whole = (
        Evidence(VariantStats(Moments(n)), VariantStats(Moments(n, 1.0, 1.0))) for n in (30, 90)
    )
    state = TypeAdapter(Rollout).dump_python(rollout, mode="json")
    told = TypeAdapter(Evidence)
    del state["evidence"], state["sides"], state["cells"]
    state |= {"seen": told.dump_python(part), "whole": told.dump_python(whole)}
    with events.recorded(engine, writer) as tx:
        bases.serve(tx, ONE, **BY)
        candidate = versions.get(tx, _register(tx, make_adapter())).int_id
        tx.add(
            RolloutRow(
                rollout_id=1,
                adapter="inventory",
                candidate=candidate,
                status="running",
                state=state,
                created_at=1.0,
                updated_at=1.0,
            )
        )
    with engine.begin() as connection:
        for table, column in (
            ("rollout_answers", "user_group"),
            ("rollout_answers", "account"),
            ("api_keys", "held"),
        ):
            connection.execute(text(f"ALTER TABLE {table} DROP COLUMN {column}"))
        connection.execute(text("DROP TABLE writers"))
        connection.execute(text("DROP TABLE gate_rules"))
        connection.execute(text("UPDATE alembic_version SET version_num = '0003'"))
    engine.dispose()
    engine = open_database(url)
    with Session(engine) as tx:
        found = TypeAdapter(Rollout).validate_python(tx.get_one(RolloutRow, 1).state)
    engine.dispose()
    writer.close()
    assert found.seen == part
    assert found.whole == whole
    assert found.evidence.keys() == {1, 2}
    assert found.cells == {phase: {"": seen} for phase, seen in found.evidence.items()}


def test_a_registry_of_a_newer_headrace_is_left_alone(url: str) -> None:
    engine = open_database(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(ConflictError, match="newer Headrace"):
        open_database(url)


def test_tables_that_no_migration_made_are_left_alone(url: str) -> None:
    engine = open_database(url)
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE alembic_version"))
    engine.dispose()
    with pytest.raises(ConflictError, match="no schema version"):
        open_database(url)


@pytest.mark.parametrize("url", ["mysql://u:secret@h/d", "nonsense"])
def test_a_wrong_url_is_reported_without_its_password(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_database(url)
    assert "secret" not in str(caught.value)


def test_a_key_serves_until_it_expires_is_revoked_or_its_tenant_suspended(change: Change) -> None:
    request = KeyRequest(
        tenant="acme", principal="shop", models=("care",), attributes={"tier": "vip"}, lasts_s=50.0
    )
    with change() as tx:
        key = keys.issue(tx, request, **BY)
        lasting = keys.issue(tx, KeyRequest(tenant="acme", roles=(Role.LABEL,)), **BY)
    with change() as tx:
        found = keys.resolve(tx, digest(key.secret), 149.0)
        assert found is not None
        assert (found.tenant, found.name, found.models) == ("acme", "shop", {"care"})
        assert (found.attributes, found.expires_at) == ({"tier": "vip"}, 150.0)
        assert keys.resolve(tx, digest(key.secret), 150.0) is None
        tenants.suspend(tx, "acme", suspended=True, **BY)
        assert keys.resolve(tx, digest(lasting.secret), 1.0) is None
        tenants.suspend(tx, "acme", suspended=False, **BY)
        assert keys.resolve(tx, digest(lasting.secret), 1.0) is not None
        keys.revoke(tx, lasting.key_id, **BY)
        keys.revoke(tx, lasting.key_id, **BY)
        assert keys.resolve(tx, digest(lasting.secret), 1.0) is None
        assert keys.resolve(tx, digest("hr-other"), 1.0) is None
    with change() as tx:
        listed = keys.listed(tx, "acme")
        assert {(k.principal, k.revoked_at) for k in listed} == {("shop", None), ("default", 100.0)}
        assert key.secret not in json.dumps([str(record) for record in listed])
        with pytest.raises(NotFoundError, match="no key"):
            keys.revoke(tx, "nope", **BY)


@pytest.mark.parametrize(
    "wrong",
    [
        {"tenant": "../x"},
        {"tenant": ""},
        {"tenant": "a", "models": ("a/b",)},
        {"tenant": "a", "lasts_s": 0},
        {"tenant": "a", "principal": "A B"},
    ],
)
def test_a_key_for_a_name_that_is_none_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"valid name|greater than"):
        KeyRequest.model_validate(wrong)


def _register(tx: Session, path: Path, owner: str = "acme") -> AdapterVersion:
    manifest = adapters.inspect(path, max_rank=32)
    versions.register(tx, manifest, path, "d" * 64, owner=owner, **BY)
    return manifest.id


def test_an_adapter_is_its_owners_and_who_it_is_granted_to(
    change: Change, make_adapter: Callable[..., Path]
) -> None:
    with change() as tx:
        bases.serve(tx, ONE, **BY)
        _register(tx, make_adapter())
        tenants.ensure(tx, "rival", **BY)
    with change() as tx:
        with pytest.raises(ConflictError, match="another tenant"):
            _register(tx, make_adapter(version=2), owner="rival")
        assert access.access(tx, access.owners(tx)) == {"inventory": {"acme"}}
        access.grant(tx, "inventory", "rival", **BY)
        access.grant(tx, "inventory", "rival", **BY)
        access.grant(tx, "inventory", "*", **BY)
        tx.flush()
        assert access.access(tx, access.owners(tx)) == {"inventory": {"acme", "rival", "*"}}
        access.withdraw(tx, "inventory", "rival", **BY)
        tx.flush()
        assert access.access(tx, access.owners(tx)) == {"inventory": {"acme", "*"}}
        for wrong in (("nope", "rival"), ("inventory", "nobody")):
            with pytest.raises(NotFoundError, match="there is no"):
                access.grant(tx, *wrong, **BY)


def test_a_version_keeps_its_lineage_and_cannot_be_registered_twice(
    change: Change, make_adapter: Callable[..., Path]
) -> None:
    path = make_adapter()
    with change() as tx:
        with pytest.raises(ConflictError, match="none is registered"):
            _register(tx, path)
        bases.serve(tx, ONE, **BY)
        version = _register(tx, path)
        tx.flush()
        with pytest.raises(ConflictError, match="immutable"):
            _register(tx, path)
        row = tx.execute(text("SELECT base, dataset, run_id, parent FROM adapter_versions")).one()
        assert tuple(row) == ("0" * 64, "inventory@1", "run", None)
        assert versions.get(tx, version).manifest.dataset_digest == "1" * 64


def test_another_base_model_retires_what_stood_on_the_last(
    change: Change, make_adapter: Callable[..., Path]
) -> None:
    with change() as tx:
        bases.serve(tx, ONE, **BY)
        version = _register(tx, make_adapter())
        versions.set_state(tx, version, VersionState.LIVE, "", **BY)
        unjudged = _register(tx, make_adapter("returns"))
    with change() as tx:
        assert bases.serve(tx, ONE, actor="test", now=101.0) == []
        assert bases.serve(tx, TWO, actor="test", now=102.0) == ["inventory@1", "returns@1"]
        tx.flush()
        record = versions.get(tx, version)
        assert record.state == VersionState.RETIRED
        assert "two" in record.retrain
        assert bases.serve(tx, TWO, actor="test", now=103.0) == []
        with pytest.raises(ConflictError, match="fit it again"):
            _register(tx, make_adapter(version=2))
    with change() as tx:
        assert bases.serve(tx, ONE, actor="test", now=104.0) == []
        tx.flush()
        back = [versions.get(tx, one) for one in (version, unjudged)]
        # What never passed the gate is no version that served before.
        assert [one.state for one in back] == [VersionState.RETIRED, VersionState.CANDIDATE]
        assert {one.retrain for one in back} == {""}


def test_what_is_changed_is_chained_before_it_takes_effect(
    engine: Engine, change: Change, tmp_path: Path
) -> None:
    with change() as tx:
        tenants.ensure(tx, "acme", actor="ann", now=1.0)
    with pytest.raises(NotFoundError), change() as tx:  # noqa: PT012 - what fails is the change
        tenants.ensure(tx, "rival", actor="ann", now=2.0)
        tenants.require(tx, "nobody")
    with Session(engine) as tx:
        assert [event["subject"] for event in events.listed(tx, 10)] == ["acme"]
    found = audit.verify(tmp_path / "audit")
    assert (found.verified, found.records, found.changes) == (True, 0, 1)
    traces = tmp_path / "audit" / audit.CONTROL / "traces-control-test.jsonl"
    [entry] = [json.loads(line) for line in traces.read_text().splitlines()]
    assert (entry["kind"], entry["subject"], entry["actor"]) == ("tenant.created", "acme", "ann")
    traces.write_text(traces.read_text().replace("ann", "bob"))
    assert not audit.verify(tmp_path / "audit").verified


def test_a_base_models_licence_is_read_from_its_card(tmp_path: Path) -> None:
    model = tmp_path / "mini"
    with pytest.raises(DataError, match="not the directory"):
        base_models.describe(model)
    model.mkdir()
    (model / "config.json").write_text("{}")
    assert base_models.describe(model).licence == "not stated"
    (model / "README.md").write_text("---\nlicense: mit\npermitted_use: research\n---\n# Mini")
    found = base_models.describe(model)
    assert (found.name, found.licence, found.permitted_use) == ("mini", "mit", "research")
    (model / "README.md").write_text("---\nlicense: [\n---\n")
    with pytest.raises(DataError, match="not YAML"):
        base_models.describe(model)


def test_a_card_says_what_the_registry_knows(
    change: Change, make_adapter: Callable[..., Path]
) -> None:
    with change() as tx:
        bases.serve(tx, ONE, **BY)
        recipe: dict[str, object] = {"learning rate": 0.002, "epochs": 5}
        recipe |= {"a | name\n# of two lines": "<b>bold</b>"}
        lineage = {"dataset": "inventory@1", "dataset_digest": "1" * 64}
        path = make_adapter(run_id="run | with a pipe\nand a line", recipe=recipe, **lineage)
        version = _register(tx, path)
        dataset = DatasetManifest(
            name="inventory",
            version=1,
            rows=7,
            from_traces=3,
            dropped={"too long": 2},
            licence="CC BY 4.0",
        )
        versions.register_dataset(tx, dataset, Path("/d"), "1" * 64, 1.0)
        versions.set_state(tx, version, VersionState.PASSED, "gain +0.1", **BY)
        tenants.ensure(tx, "rival", **BY)
        access.grant(tx, "inventory", "rival", **BY)
    with change() as tx:
        found = card.write(tx, version)
    front = yaml.safe_load(found.split("---")[1])
    assert front["license"] == "apache-2.0"
    assert front["base_model"] == "one"
    for line in (
        "| rows | 7, 3 of them labelled production traces |",
        "| left out | 2 too long |",
        "| gate | gain +0.1 |",
        "| state | passed |",
        "| granted to | rival |",
        "| run | run \\| with a pipe and a line, 1 s of training |",
        "| permitted use | not stated |",
        "| training data | CC BY 4.0 |",
        "| learning rate | 0.002 |",
        "| epochs | 5 |",
        "| replaces | no earlier version |",
        "| a \\| name # of two lines | &lt;b>bold&lt;/b> |",
    ):
        assert line in found.splitlines()
    assert "version.registered" in found
    with change() as tx:
        leaving = card.write(tx, version, leaving=True)
    assert "rival" not in leaving
    assert "| owner | acme |" in leaving


def test_a_card_vouches_for_no_data_but_what_it_was_fitted_on(
    change: Change, make_adapter: Callable[..., Path]
) -> None:
    """A dataset of the same name, such as one that an imported version was fitted on elsewhere."""
    theirs = {"dataset": "inventory@1", "dataset_digest": "9" * 64}
    odd = {"dataset": "inventory@" + "9" * 40, "dataset_digest": "1" * 64}
    with change() as tx:
        bases.serve(tx, ONE, **BY)
        dataset = DatasetManifest(name="inventory", version=1, rows=7, from_traces=3)
        versions.register_dataset(tx, dataset, Path("/d"), "1" * 64, 1.0)
        made = [
            _register(tx, make_adapter(version=number, **lineage))
            for number, lineage in ((1, theirs), (2, odd))
        ]
    for version in made:
        with change() as tx:
            found = card.write(tx, version)
        assert "| contents | not in the registry |" in found
        assert "| training data | not in the registry |" in found
        assert yaml.safe_load(found.split("---")[1])["license"] == "other"


def test_the_newest_answers_on_trial_are_kept_until_their_rollout_is_over(
    change: Change, make_adapter: Callable[..., Path]
) -> None:
    with change() as tx:
        bases.serve(tx, ONE, **BY)
        candidate = versions.get(tx, _register(tx, make_adapter())).int_id
        for number in (1, 2):
            tx.add(
                RolloutRow(
                    rollout_id=number,
                    adapter="inventory",
                    candidate=candidate,
                    status="running",
                    state={},
                    created_at=1.0,
                    updated_at=1.0,
                )
            )
    with change() as tx:
        answers.note(tx, 1, 1, {f"tr-{i}": ("candidate", i % 7, "acme/k") for i in range(1200)})
        answers.judged(tx, "tr-0", ["rating", "disliked"])
        answers.note(tx, 2, 0, {"tr-0": ("baseline", 1, ""), "tr-new": ("baseline", 1, "")})
        found = answers.get(tx, "tr-0")
        assert found is not None
        assert (found.rollout_id, found.phase, found.side) == (1, 1, "candidate")
        assert found.counted == ["disliked", "rating"], "told twice, it stays as it is"
        assert answers.get(tx, "tr-unknown") is None

        answers.note(tx, 2, 0, {"tr-newest": ("candidate", 2, "")}, kept=100)
        assert tx.scalar(select(func.count()).select_from(RolloutAnswer)) == 100
        assert answers.get(tx, "tr-0") is None
        assert answers.get(tx, "tr-newest") is not None
        assert answers.forget(tx, 1, most=90)
        assert not answers.forget(tx, 1, most=90)
        left = tx.scalars(select(RolloutAnswer.trace_id).order_by(RolloutAnswer.number))
        assert left.all() == ["tr-new", "tr-newest"]
