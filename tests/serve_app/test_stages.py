"""Each stage, awaited directly."""

import asyncio
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from cluster import router_artefact, storage
from cluster.audit import ChainWriter, Head, read_traces, verify
from cluster.errors import ArtifactError, ConflictError
from cluster.policy.decision import Facts, enforce
from cluster.policy.rules import PolicyConfig
from cluster.policy.rules.discount_cap import DiscountCap, MaxDiscount
from cluster.policy.rules.vip_route import VipRoute
from cluster.records.labels import LabelTask
from cluster.records.trace import Refusal, RefusalTrace, RequestTrace, Route, Snippet, Span
from cluster.records.usage import MeteredUsage, TokenUsage
from cluster.router_artefact import RouterArtefact
from serve_app.config import (
    ContextConfig,
    MonitoringConfig,
    RoutingConfig,
)
from serve_app.context.index import DocumentIndex
from serve_app.pipeline.steps import settle
from serve_app.protocol import EMBEDDING_MODEL, Envelope, Generation, Sampling, carrier
from serve_app.routing.router import Router
from serve_app.stages.audit import Audit, label_task
from serve_app.stages.context import Context
from serve_app.stages.data_prep import DataPrep
from serve_app.stages.governance import Governance
from serve_app.stages.monitoring import Monitoring, share_of
from serve_app.stages.policy import Policy
from serve_app.stages.routing import Embedder, Routing, lazily
from tests.waiting import until


def _envelope(text: str = "hello", model: str = "auto", **attributes: str) -> Envelope:
    message = {"role": "user", "content": text}
    return Envelope("tr-1", 0.0, "acme", attributes, model, [message], Sampling())


def _generation(text: str = "ok", mean: float = -0.01, least: float = -0.02) -> Generation:
    return Generation(text, "inventory@1", 3, 4, "stop", mean, least, None, 5.0, "r")


# -- data_prep ---------------------------------------------------------------------------------


async def test_data_prep_normalises_and_refuses_nothing() -> None:
    good, empty = await DataPrep()([_envelope(" a\t b "), _envelope(" \u200b ")])
    assert good.messages[0]["content"] == " a\t b "
    assert good.refusal is None
    assert empty.refusal is not None
    assert empty.refusal.code == "empty_messages"


# -- routing -----------------------------------------------------------------------------------


@pytest.fixture
def router(tmp_path: Path) -> Router:
    weights = np.eye(3, dtype=np.float32) * 10
    classes = [("inventory", "stock"), ("inventory", "order"), ("loyalty", "points")]
    artefact = RouterArtefact(
        weights, np.zeros(3, np.float32), np.eye(3, dtype=np.float32), classes
    )
    router_artefact.write(artefact, tmp_path / "router")
    return Router(tmp_path / "router")


def _embed(texts: list[str]) -> NDArray[np.float32]:
    table = {"stock": [1, 0, 0], "points": [0, 0, 1], "odd": [-1, 0, 0]}
    return np.array([table.get(text, [0.6, 0, 0.8]) for text in texts], dtype=np.float32)


async def test_routing_picks_by_intent_and_obeys_the_client(router: Router) -> None:
    stage = Routing(_embed, _embed, router, RoutingConfig(artefact="x"), "mini")
    found = await stage(
        [
            _envelope("stock"),
            _envelope("points"),
            _envelope("points", model="inventory@3"),
            _envelope("stock", model="mini"),
            _envelope("odd"),
        ]
    )
    assert [e.route.adapter for e in found if e.route] == [
        "inventory",
        "loyalty",
        "inventory",
        None,
        "inventory",
    ]
    assert found[0].route is not None
    assert found[0].route.intent == "stock"
    assert found[0].route.confidence > 0.99
    assert found[0].route.novelty == pytest.approx(0.0, abs=1e-6)
    assert found[4].route is not None
    assert found[4].route.novelty >= 1.0


async def test_an_unsure_route_goes_to_the_base_model(router: Router) -> None:
    config = RoutingConfig(artefact="x", min_confidence=0.95)
    found = await Routing(_embed, _embed, router, config, "mini")([_envelope("between")])
    assert found[0].route is not None
    assert found[0].route.adapter is None


async def test_requests_for_embeddings_get_sentence_vectors_and_no_route(router: Router) -> None:
    made = []

    def make() -> Embedder:
        made.append(1)
        return lambda texts: np.full((len(texts), 3), 7, dtype=np.float32)

    stage = Routing(_embed, lazily(make), router, RoutingConfig(artefact="x"), "mini")
    await stage([_envelope("stock")])
    assert made == []
    asked, routed, _ = await stage(
        [
            _envelope("stock", model=EMBEDDING_MODEL),
            _envelope("stock"),
            _envelope("odd", model=EMBEDDING_MODEL),
        ]
    )
    assert np.frombuffer(asked.embedding, np.float32).tolist() == [7, 7, 7]
    assert asked.route is None
    assert np.frombuffer(routed.embedding, np.float32).tolist() == [1, 0, 0]
    assert routed.route is not None
    assert made == [1]


# -- policy ------------------------------------------------------------------------------------

RULES = PolicyConfig(
    rules=(
        VipRoute(type="vip_route", attribute="tier", equals="vip", adapter="care"),
        DiscountCap(type="discount_cap", max_percent=20, unless_attribute="tier", equals="gold"),
    )
)


def _routed(text: str, **attributes: str) -> Envelope:
    envelope = _envelope(text, **attributes)
    envelope.route = Route("loyalty", "points", 0.9, 0.1, "intent")
    return envelope


async def test_a_vip_goes_to_the_other_adapter_and_the_trace_says_why() -> None:
    vip, plain = await Policy(RULES)([_routed("hi", tier="vip"), _routed("hi")])
    settle(vip)
    settle(plain)
    assert vip.route is not None
    assert (vip.route.adapter, vip.route.instead_of) == ("care", "loyalty")
    assert "instead of loyalty" in vip.route.reason
    assert plain.route is not None
    assert plain.route.adapter == "loyalty"


def test_the_last_discount_cap_that_applies_is_the_only_one() -> None:
    rules = tuple(
        DiscountCap(max_percent=percent, unless_attribute="tier", equals="gold")
        for percent in (10, 30)
    )
    decision = PolicyConfig(rules=rules).decide(Facts({}, "hi"))
    assert decision.constraints == (MaxDiscount(30),)
    assert enforce("50% off", decision.constraints) == "30% off"


async def test_the_discount_cap_spares_gold_members() -> None:
    gold, other = await Policy(RULES)(
        [_routed("40% discount please", tier="gold"), _routed("40% discount please")]
    )
    assert (gold.constraints, gold.conflicts) == ((), [])
    assert other.constraints == (MaxDiscount(20),)
    assert other.conflicts == ["asked for more than 20% discount"]


# -- context -----------------------------------------------------------------------------------


@pytest.fixture
def index(tmp_path: Path) -> DocumentIndex:
    staged = storage.staging(tmp_path / "index")
    table = pa.table(
        {
            "title": ["returns", "hours"],
            "text": ["30 days with a receipt", "open at nine"],
            "tenant": ["acme", "*"],
            "embedding": [[1.0, 0.0], [0.0, 1.0]],
        }
    )
    pq.write_table(table, staged / "documents.parquet")
    storage.publish(staged, tmp_path / "index")
    return DocumentIndex(tmp_path / "index")


async def test_passages_are_stitched_within_the_adapters_budget(index: DocumentIndex) -> None:
    config = ContextConfig(index="x", budget_words={"storepolicy": 5, "inventory": 0})
    envelopes = []
    for adapter in ("storepolicy", "inventory"):
        envelope = _envelope("returns?")
        envelope.embedding = np.array([1.0, 0.0], dtype=np.float32).tobytes()
        envelope.route = Route(adapter, "x", 1.0, 0.0, "")
        envelopes.append(envelope)
    policy, inventory = await Context(index, config)(envelopes)
    assert policy.snippets == [Snippet("returns", "30 days with a receipt", 1.0)]
    assert policy.prompt[0] == {"role": "system", "content": "Context:\n- 30 days with a receipt"}
    assert inventory.prompt == inventory.messages
    assert inventory.snippets == policy.snippets


# -- monitoring --------------------------------------------------------------------------------


async def test_edge_cases_are_flagged_and_others_sampled() -> None:
    sure, unsure, novel = _envelope(), _envelope(), _envelope()
    sure.generation = novel.generation = _generation()
    unsure.generation = _generation(mean=-0.5, least=-2.0)
    novel.route = Route("inventory", "x", 0.9, 0.9, "")
    stage = Monitoring(MonitoringConfig(sample_share=1.0))
    found = [e.verdicts for e in await stage([sure, unsure, novel])]
    assert [v.reasons for v in found if v] == [[], ["low_confidence"], ["out_of_distribution"]]
    assert [v.sampled for v in found if v] == [True, False, False]
    assert found[1] is not None
    assert found[1].confidence == pytest.approx(math.exp(-0.5), abs=1e-4)


def test_sampling_is_uniform_and_repeats() -> None:
    shares = [share_of(f"tr-{n}") for n in range(4000)]
    assert shares == [share_of(f"tr-{n}") for n in range(4000)]
    assert 0.07 < sum(share < 0.1 for share in shares) / 4000 < 0.13


# -- audit -------------------------------------------------------------------------------------


@dataclass
class Registry:
    """Stores what the audit stage reports; reports of use block until `back` is set."""

    tasks: list[LabelTask] = field(default_factory=list)
    uses: list[MeteredUsage] = field(default_factory=list)
    writers: list[str] = field(default_factory=list)
    head: Head = Head(0, "")  # noqa: RUF009 - immutable
    back: asyncio.Event | None = None

    async def register_writer(self, writer: str) -> None:
        self.writers.append(writer)

    async def enqueue(self, tasks: list[LabelTask]) -> int:
        self.tasks.extend(tasks)
        return len(tasks)

    async def record(self, writer: str, head: Head, rows: list[MeteredUsage]) -> int:
        if writer not in self.writers:
            raise ConflictError("not registered")
        if self.back is not None:
            await self.back.wait()
        self.uses.extend(rows)
        self.head = head
        return len(rows)


def _requests(folder: Path) -> list[RequestTrace]:
    return [trace for trace in read_traces(folder) if isinstance(trace, RequestTrace)]


async def test_audit_writes_before_it_acknowledges_and_forwards_edge_cases(tmp_path: Path) -> None:
    registry = Registry()
    flagged, plain = _envelope("call 415-555-0132"), _envelope("hi")
    flagged.trace_id = "tr-2"
    for envelope in (flagged, plain):
        envelope = (await Governance()([envelope]))[0]
        envelope.vault = {}
        envelope.generation = _generation(mean=-2.0 if envelope is flagged else -0.001)
        envelope.usage = TokenUsage("care@1", 11, 7)
        envelope.prompt = envelope.messages
    stage = Audit(ChainWriter(tmp_path, "w"), registry, registry)
    batch = await Monitoring(MonitoringConfig(sample_share=0.0))([flagged, plain])
    await stage(batch)
    found = verify(tmp_path)
    assert (found.records, found.verified) == (2, True)
    assert "555-01" not in (tmp_path / "traces-w.jsonl").read_text()
    assert [trace.spans[-1].name for trace in _requests(tmp_path)] == ["audit", "audit"]
    await until(lambda: bool(registry.tasks and registry.uses))
    assert [task.trace_id for task in registry.tasks] == ["tr-2"]
    # The first record waited for it.
    assert registry.writers == ["w"]
    assert registry.head == stage._writer.head
    assert verify(tmp_path, {"w": registry.head}, {}).verified
    [use] = registry.uses
    assert (use.writer, use.first, use.after, use.requests) == ("w", 0, 2, 2)
    assert (use.version, use.input_tokens, use.output_tokens) == ("care@1", 22, 14)


async def test_a_writer_is_registered_again_with_a_restored_registry(tmp_path: Path) -> None:
    registry = Registry()
    stage = Audit(ChainWriter(tmp_path, "w"), registry, registry)
    for number in range(2):
        envelope = _envelope("hi")
        envelope.trace_id = f"tr-{number}"
        await stage([envelope])
        await until(lambda: registry.head == stage._writer.head)
        registry.writers.clear()  # restored from an older copy
    assert registry.head.entries == 2


async def test_names_that_callers_choose_are_masked_in_the_record(tmp_path: Path) -> None:
    vouched = {"mail": "ann@shop.example.com", "tier": "gold"}
    envelope = _envelope(model="ann@shop.example.com <|x|>", **vouched)
    envelope.metadata = {"note": "call 415-555-0132", "ann@shop.example.com": "1"}
    envelope.refusal = Refusal(404, "model_not_found", "model 'ann@shop.example.com' is not served")
    envelope.warnings = ["ignored: ann@shop.example.com"]
    registry = Registry()
    await Audit(ChainWriter(tmp_path, "w"), registry, registry)([envelope])
    [record] = _requests(tmp_path)
    assert "ann@" not in str(record)
    assert "415-555" not in str(record)
    assert record.requested_model == "[EMAIL_1] < |x|>"
    assert record.attributes["tier"] == "gold"
    # Policy has seen what the key said.
    assert envelope.attributes["mail"] == "ann@shop.example.com"


async def test_a_record_of_too_many_values_costs_no_other_its_place(tmp_path: Path) -> None:
    many, other = _envelope(), _envelope()
    many.metadata = {"a": " ".join(f"10.{n // 250}.{n % 250}.7" for n in range(1100))}
    registry = Registry()
    await Audit(ChainWriter(tmp_path, "w"), registry, registry)([many, other])
    first, second = _requests(tmp_path)
    assert first.metadata == {"a": "[withheld: too many personal values]"}
    assert second.metadata == {}


async def test_text_that_utf8_cannot_encode_costs_no_other_record_its_place(tmp_path: Path) -> None:
    odd, other = _envelope("a \ud800 lone surrogate"), _envelope()
    for envelope in (odd, other):
        envelope.spans = [Span("policy", 1.5, 0.5)]
    registry = Registry()
    await Audit(ChainWriter(tmp_path, "w"), registry, registry)([odd, other])
    first, second = _requests(tmp_path)
    assert first.messages == odd.messages
    assert [span.name for span in second.spans] == ["policy", "audit"]


async def test_what_a_refusal_quotes_of_its_caller_is_masked(tmp_path: Path) -> None:
    many = " ".join(f"a{n}@example.com" for n in range(1100))
    named = Refusal(400, "unsupported_parameter", f"unknown: {many}", param="ann@example.com")
    event = RefusalTrace(
        trace_id="tr-2",
        received_at=1.0,
        recorded_at=1.0,
        tenant="acme",
        key_id="k",
        requested_model="",
        path="/v1/users/anna\u200b@exam\u200bple.com",
        refusal=named,
    )
    registry = Registry()
    await Audit(ChainWriter(tmp_path, "w"), registry, registry)([carrier(event), _envelope()])
    refused, answered = read_traces(tmp_path)
    assert isinstance(refused, RefusalTrace)
    assert refused.path == "/v1/users/[EMAIL_1]"
    assert refused.refusal.param == "[EMAIL_2]"
    assert refused.refusal.message == "[withheld: too many personal values]"
    assert isinstance(answered, RequestTrace)


async def test_passages_of_one_tenant_stand_in_no_others_prompt(index: DocumentIndex) -> None:
    config = ContextConfig(index="x", default_budget_words=50, min_similarity=-1.0)
    envelopes = [replace(_envelope("returns?"), tenant=name) for name in ("acme", "rival", "*")]
    for envelope in envelopes:
        envelope.embedding = np.array([1.0, 0.0], dtype=np.float32).tobytes()
    own, other, _ = await Context(index, config)(envelopes)
    assert [snippet.document for snippet in own.snippets] == ["returns", "hours"]
    assert [snippet.document for snippet in other.snippets] == ["hours"], "what is everyone's"
    assert "receipt" not in str(other.prompt)


def test_an_index_that_does_not_say_whose_its_passages_are_is_refused(tmp_path: Path) -> None:
    with storage.publishing(tmp_path / "old") as staged:
        table = pa.table({"title": ["a"], "text": ["b"], "embedding": [[1.0, 0.0]]})
        pq.write_table(table, staged / "documents.parquet")
    with pytest.raises(ArtifactError, match="whose its passages are"):
        DocumentIndex(tmp_path / "old")


async def test_passages_are_masked_for_the_prompt_and_restored_in_the_answer(
    tmp_path: Path,
) -> None:
    published = tmp_path / "index"
    text = "The hotline is 800-555-0199, or help@example.com."
    with storage.publishing(published) as staged:
        vectors = np.array([[1.0, 0.0]], dtype=np.float32)
        table = pa.table(
            {
                "title": ["hotline"],
                "text": [text],
                "tenant": ["acme"],
                "embedding": vectors.tolist(),
            }
        )
        pq.write_table(table, staged / "documents.parquet")
    stage = Context(DocumentIndex(published), ContextConfig(index="", default_budget_words=50))
    envelope = _envelope("what is [PHONE_1]?")
    envelope.placeholders = ("[PHONE_1]",)
    envelope.embedding = np.array([1.0, 0.0], dtype=np.float32).tobytes()
    envelope = (await stage([envelope]))[0]
    assert "555-0199" not in str(envelope.prompt) + str(envelope.snippets)
    assert "[PHONE_2], or [EMAIL_1]" in envelope.prompt[0]["content"]
    assert envelope.vault == {"[PHONE_2]": "800-555-0199", "[EMAIL_1]": "help@example.com"}
    assert set(envelope.placeholders) == {"[PHONE_1]", "[PHONE_2]", "[EMAIL_1]"}


async def test_what_waits_for_the_registry_keeps_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_app.stages.audit._GATHER_S", 0.01)
    back, now = asyncio.Event(), [1000.0]
    registry = Registry(back=back)
    used = registry.uses
    monkeypatch.setattr("serve_app.stages.audit.time.time", lambda: now[0])

    stage = Audit(ChainWriter(tmp_path, "w"), registry, registry)
    for minute in range(4):
        for _ in range(2):
            envelope = _envelope()
            envelope.generation, envelope.usage = _generation(mean=0.0), TokenUsage("care@1", 11, 7)
            now[0] = 1000.0 + 60 * minute
            await stage([envelope])
        await asyncio.sleep(0.03)
    now[0] = 9000.0
    back.set()
    await until(lambda: len(used) == 4)
    assert [(use.at, use.requests) for use in used] == [
        (1000.0, 2),
        (1060.0, 2),
        (1120.0, 2),
        (1180.0, 2),
    ]
    assert [(use.first, use.after) for use in used] == [(0, 2), (2, 4), (4, 6), (6, 8)]


class SlowWriter(ChainWriter):
    """Holds each write until it is let go, and counts those at work at once."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, "w")
        self.entered, self.go = threading.Semaphore(0), threading.Event()
        self.at_work = self.most = 0

    def append(self, traces: Sequence[dict[str, Any]]) -> list[str]:
        self.at_work += 1
        self.most = max(self.most, self.at_work)
        self.entered.release()
        assert self.go.wait(10)
        hashes = super().append(traces)
        self.at_work -= 1
        return hashes


async def test_a_caller_that_leaves_during_a_write_breaks_no_chain(tmp_path: Path) -> None:
    writer = SlowWriter(tmp_path)
    registry = Registry()
    stage = Audit(writer, registry, registry)
    left = asyncio.ensure_future(stage([_envelope()]))
    assert await asyncio.to_thread(writer.entered.acquire, True, 10)
    left.cancel()
    with pytest.raises(asyncio.CancelledError):
        await left
    stays = asyncio.ensure_future(stage([_envelope()]))
    await asyncio.sleep(0.05)
    writer.go.set()
    await stays
    found = verify(tmp_path)
    assert (found.records, found.verified, writer.most) == (2, True, 1)


def test_an_unremarkable_request_needs_no_expert() -> None:
    assert label_task(_envelope()) is None
