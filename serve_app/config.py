"""Configuration of the serving graph. Imports neither Ray nor an engine."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal, Self, get_args

from pydantic import Field, model_validator

from cluster.config import BaseModelRef, ConfigModel
from cluster.policy.rules import PolicyConfig
from cluster.types import AdapterVersion

StageName = Literal[
    "data_prep", "governance", "routing", "policy", "context", "monitoring", "audit"
]
#: Tokens of a long word with what stands around it, at most (a token takes a byte at least), and
#: of words as they are on average.
_WORD_MOST, _WORD_MEAN = 12, 1.5
STAGE_NAMES: tuple[StageName, ...] = get_args(StageName)


class Autoscaling(ConfigModel):
    """Ray Serve autoscaling of one deployment."""

    min_replicas: int = Field(default=1, ge=1)
    """At least one: direct calls cannot tell Serve that they wait for a first replica."""
    max_replicas: int = Field(default=1, ge=1)
    target_ongoing_requests: float = Field(default=4.0, gt=0)
    """Requests a replica should have under way, however many calls they came in."""
    upscale_delay_s: float = Field(default=10.0, ge=0)
    downscale_delay_s: float = Field(default=120.0, ge=0)


class BreakerConfig(ConfigModel):
    """When a stage counts as down."""

    failures: int = Field(default=5, ge=1)
    """Faults in a row that open the circuit."""
    cool_s: float = Field(default=2.0, gt=0)
    """How long an open circuit rejects every call."""


class StageConfig(ConfigModel):
    """How one stage is deployed and what happens when it is late or down."""

    autoscaling: Autoscaling = Autoscaling()
    num_cpus: float = Field(default=0.1, ge=0)
    """Logical CPUs of a replica."""
    max_batch: int = Field(default=32, ge=1, le=1024)
    """Most envelopes handed over in one call."""
    max_in_flight: int = Field(default=2, ge=1)
    """Calls one gateway keeps open to the stage."""
    linger_ms: float = Field(default=25.0, ge=0)
    """Longest a call to a remote stage waits for its batch to fill: see `batcher.BatchSizer`."""
    max_queue: int = Field(default=1024, ge=1)
    """Envelopes that may wait for a call; while so many wait, new requests get 429."""
    budget_ms: float = Field(default=5000.0, gt=0)
    """Longest a hand-off may take before the failure rule applies."""
    on_failure: Literal["open", "closed"] = "closed"
    """`open`: the request goes on without the stage; `closed`: it is refused with 503."""
    breaker: BreakerConfig = BreakerConfig()


class EngineConfig(ConfigModel):
    """The vLLM engine deployment."""

    autoscaling: Autoscaling = Autoscaling(target_ongoing_requests=16)
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    max_model_len: int = 512
    max_num_seqs: int = 64
    loras: bool = True
    """Whether it takes adapters. An engine without is faster at the one model it has."""
    max_loras: int = Field(default=32, ge=1)
    """Adapters computed at a time; more take turns. As many as requests are under way costs little
    where memory allows; with fewer, requests wait for their adapter's turn (`bench crowd`)."""
    max_cpu_loras: int = Field(default=256, ge=1)
    """Adapters held in a replica's memory; beyond it those idle for longest make room."""
    eager_loras: int = Field(default=32, ge=0)
    """Live adapters loaded before a replica takes traffic; the others when they are asked for."""
    max_lora_rank: int = 32
    kv_cache_gib: int = 1
    reconcile_s: float = 5.0
    """How often a replica compares what it holds with what the registry wants."""

    @model_validator(mode="after")
    def _holds_what_it_computes(self) -> Self:
        if self.max_cpu_loras < self.max_loras:
            raise ValueError("max_cpu_loras must be at least max_loras: what is computed is held")
        return self


class PlainPool(ConfigModel):
    """Engines without adapters, faster at the one model they have: the base model alone, or one
    adapter version that has most of the traffic, merged into it (`headrace export`)."""

    version: str | None = None
    """The version that `model` is, such as `care@2`; None is the base model alone."""
    model: BaseModelRef | None = None
    """The merged model's directory; with a version only."""
    engine: EngineConfig = EngineConfig(loras=False)

    @model_validator(mode="after")
    def _is_plain(self) -> Self:
        if (self.version is None) != (self.model is None):
            raise ValueError("name the version and the merged model, or neither for the base model")
        if self.engine.loras:
            raise ValueError("engine.loras must be false: an engine with adapters is no plain one")
        if self.version is not None:
            AdapterVersion.parse(self.version)
        return self


class GatewayConfig(ConfigModel):
    """The HTTP edge."""

    autoscaling: Autoscaling = Autoscaling(target_ongoing_requests=64)
    num_cpus: float = 0.5
    host: str = "127.0.0.1"
    port: int = 8000
    max_under_way: int = Field(default=512, ge=1)
    """Requests one gateway replica works on; the next ones get 429 before anything is done."""
    max_tenant_share: float = Field(default=0.5, gt=0, le=1)
    """Of those, the most that one tenant's requests may be, each choice counted: the rest is for
    the others."""
    max_ongoing_requests: int = 8192
    """What Ray Serve lets in: far more, so that a refusal is ours and says when to come back."""
    max_body_bytes: int = 1 << 20
    max_messages: int = 128
    max_tokens_default: int = 96
    key_cache_s: float = 5.0
    """How long a resolved key is trusted without asking again; also how fast one is revoked."""
    request_timeout_s: float = 120.0
    management_rpm: int = Field(default=600, ge=1)
    """Requests a minute of one key for all but answers: models, keys, labels, bills, adapters."""
    head_s: float = Field(default=10.0, gt=0)
    """A connection ends that has not sent a request's headers after so long,"""
    body_s: float = Field(default=60.0, gt=0)
    """or its body,"""
    unread_s: float = Field(default=30.0, gt=0)
    """or has taken nothing of an answer that waits for it."""
    max_connections_per_address: int = Field(default=1024, ge=1)
    """To one gateway replica. Behind a balancer of one address: as many as it opens."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may call the gateway from a browser, such as `https://app.example.com`,
    or `*`; none by default."""

    @property
    def max_tenant_under_way(self) -> int:
        """Answers of one tenant that a gateway replica works on at a time."""
        return max(1, int(self.max_under_way * self.max_tenant_share))


class CacheConfig(ConfigModel):
    """The response cache. Off unless asked for."""

    mode: Literal["off", "exact", "semantic"] = "off"
    """`semantic` also answers from a similar prompt: for texts whose details do not matter."""
    min_similarity: float = Field(default=0.97, ge=0, le=1)
    """Least cosine similarity at which two prompts count as one."""
    max_entries: int = Field(default=4096, ge=1)
    ttl_s: float = Field(default=300.0, gt=0)


class GovernanceConfig(ConfigModel):
    """What happens to personal data."""

    answer_values: Literal["show", "mask"] = "show"
    """Values that an answer brings of its own, such as a business's hotline: the client gets them
    as they are, or as placeholders. The log holds placeholders either way."""
    limit_s: float = Field(default=2.0, gt=0)
    """Longest that one request's texts may take to be normalised, and to be masked: what takes
    longer is refused, and its work ends."""


class RoutingConfig(ConfigModel):
    """The router's artefact and its floor."""

    artefact: str
    """Published router directory; written by the data job."""
    precision: Literal["int8", "bfloat16"] = "int8"
    """Of the vectors that requests are routed by: `int8` does it as well for less than half."""
    min_confidence: float = 0.0
    """Below this the base model answers instead of an adapter."""


class ContextConfig(ConfigModel):
    """Retrieval and stitching."""

    index: str
    """Published document index; written by the data job."""
    top_k: int = 2
    min_similarity: float = 0.55
    budget_words: dict[str, int] = Field(default_factory=dict)
    """Adapter name to the words of context its prompt may carry; 0 for tasks that need none."""
    default_budget_words: int = 0

    def stitched(self, adapter: str | None) -> tuple[int, int]:
        """Tokens that context may add to a prompt of `adapter` ("" for the base model, None where
        the router chooses): at most, and as a rule. Its budgets are words."""
        if adapter is None:
            words = max(self.default_budget_words, *self.budget_words.values(), 0)
        else:
            words = self.budget_words.get(adapter, self.default_budget_words)
        return _WORD_MOST * words, int(_WORD_MEAN * words)


class MonitoringConfig(ConfigModel):
    """What counts as an edge case."""

    min_confidence: float = 0.80
    """Mean token probability below which an answer is an edge case."""
    min_weakest: float = 0.60
    """Least token probability below which it is one."""
    max_novelty: float = 0.6
    """Distance from everything the router knows above which it is one."""
    sample_share: float = Field(default=0.1, ge=0, le=1)
    """Share of all other requests sampled for labelling."""


class StageTable(ConfigModel):
    """Deployment settings of each stage."""

    data_prep: StageConfig = StageConfig()
    governance: StageConfig = StageConfig()
    routing: StageConfig = StageConfig()
    policy: StageConfig = StageConfig()
    context: StageConfig = StageConfig(on_failure="open")
    monitoring: StageConfig = StageConfig(on_failure="open")
    audit: StageConfig = StageConfig()

    @model_validator(mode="after")
    def _never_open(self) -> Self:
        for name in ("governance", "audit"):
            if getattr(self, name).on_failure == "open":
                raise ValueError(
                    f"stages.{name}.on_failure must be closed: no request may pass unmasked or "
                    "unrecorded"
                )
        return self


class ServeConfig(ConfigModel):
    """Everything the graph is built from."""

    base_model: BaseModelRef
    state: str
    """Directory of traces and audit logs."""
    gateway: GatewayConfig = GatewayConfig()
    placement: Literal["split", "fused"] = "split"
    """`split`: each stage its own deployment; `fused`: those of `fuse` in the gateway's process."""
    fuse: tuple[StageName, ...] = STAGE_NAMES
    """What `fused` takes into the gateway's process; the others stay deployments."""
    nodes: Literal["one", "many"] = "one"
    """`one`: replicas take calls on loopback only; `many`: on the address of their node."""
    calls: Literal["direct", "handle"] = "direct"
    """How stages are called: over connections of the gateway's own, or by Serve's handle, which
    costs ten times as much and counts in Serve's own request metrics."""
    stages: StageTable = StageTable()
    cache: CacheConfig = CacheConfig()
    engine: EngineConfig = EngineConfig()
    plain: tuple[PlainPool, ...] = Field(default=(), max_length=8)
    """Engines beside it that take their version's requests while it is live."""
    governance: GovernanceConfig = GovernanceConfig()
    routing: RoutingConfig
    context: ContextConfig
    policy: PolicyConfig = PolicyConfig()
    monitoring: MonitoringConfig = MonitoringConfig()

    @model_validator(mode="after")
    def _one_pool_each(self) -> Self:
        versions = [pool.version for pool in self.plain]
        if len(set(versions)) != len(versions):
            raise ValueError("plain: two pools are of the same version")
        for pool in self.plain:
            if pool.engine.max_model_len != self.engine.max_model_len:
                raise ValueError(
                    "plain: engine.max_model_len must be that of the engine with adapters, "
                    f"{self.engine.max_model_len}"
                )
        return self

    @property
    def policy_version(self) -> str:
        """A digest of the rules that shape answers; a changed rule makes another one."""
        return hashlib.sha256(self.policy.model_dump_json().encode()).hexdigest()[:16]

    @property
    def audit_dir(self) -> Path:
        """Where traces and their chains are written."""
        return Path(self.state) / "audit"
