"""Builds the serving graph: composes gateway, stages and engine into Ray Serve deployments.

Stages and engines stay plain classes; here each becomes a deployment with its own autoscaling.
Ray's deployment options appear nowhere else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from cluster.audit import ChainWriter
from cluster.control.client import ControlClient
from cluster.control.protocol import ENGINE_DEPLOYMENT, PLAIN_PREFIX, RoutingTable
from cluster.embedding import token_counter
from cluster.processes import share_interpreter
from cluster.ray_private import (
    log_with_serve,
    node_address,
    share_ingress_port,
    stay_on_loopback,
)
from cluster.records.model import ModelProfile, Target
from serve_app.config import Autoscaling, EngineConfig, ServeConfig, StageConfig
from serve_app.engine.replica import EngineReplica
from serve_app.gateway.app import create_app
from serve_app.gateway.auth import Authenticator
from serve_app.gateway.budgets import Budgets
from serve_app.gateway.connections import Bounds, Connections
from serve_app.gateway.rates import Rates
from serve_app.generation.attempts import Attempts
from serve_app.generation.cache import ResponseCache
from serve_app.generation.providers.base import Provider
from serve_app.generation.providers.pools import Pools
from serve_app.generation.providers.vllm_replicas import VLLMReplicas
from serve_app.generation.targets import CAPABILITIES, Targets
from serve_app.long_texts import is_long
from serve_app.pipeline.batcher import BatchSizer, Lanes, LocalStage, StageBatcher, StageCall
from serve_app.pipeline.breaker import Breaker
from serve_app.pipeline.pipeline import Pipeline, StepRunner
from serve_app.pipeline.ray_metrics import RayStageMetrics
from serve_app.pipeline.scaling import POLICY, WORK
from serve_app.pipeline.steps import AUDIT, DATA_PREP, GUARD, MASK, ROUTE, STEPS, Row, Step, run
from serve_app.prompt_length import most_characters
from serve_app.protocol import EMBEDDING_MODEL, STAGES, Envelope, Stage
from serve_app.rpc.pool import Pool
from serve_app.rpc.server import Address, Server
from serve_app.stages.audit import takes_long

logger = logging.getLogger(__name__)

_WATCH_S = 20.0
_REPORT_S = 1.0
_STREAM_LIMIT_S = 300.0
_LOOPBACK = "127.0.0.1"
#: A remote call costs as much as this many of its envelopes' steps would wait to share it. Measured
#: at 128 concurrent requests on two cores: 384 requests a second at 1, 501 at 3.
_STEPS_A_CALL = 3


@dataclass(frozen=True)
class _Apart:
    """Which envelopes of a step have a lane of their own, and how many of them go together."""

    takes_long: Callable[[Envelope], bool]
    batch: int


def _text(envelope: Envelope) -> str:
    return envelope.generation.text if envelope.generation is not None else ""


def _has_long_texts(envelope: Envelope) -> bool:
    return is_long(envelope.texts())


#: Longest that what takes long may take, the wait for its turn included.
_LONG_MS = 30_000.0
_APART = {
    GUARD: _Apart(lambda envelope: is_long([_text(envelope)]), 1),
    DATA_PREP: _Apart(_has_long_texts, 1),
    MASK: _Apart(_has_long_texts, 1),
    AUDIT: _Apart(takes_long, 1),
    # By all layers of the model and of all of a text, hundreds in a call.
    ROUTE: _Apart(lambda envelope: envelope.model == EMBEDDING_MODEL, 4),
}


def base_name(config: ServeConfig) -> str:
    """The base model's public name: its directory's."""
    return Path(config.base_model.path).name


def make_stage(name: str, config: ServeConfig, replica: str) -> Stage:
    """The stage called `name` in replica `replica`, ready to be awaited.

    Raises:
        ValueError: there is no such stage.
    """
    if name == "data_prep":
        from serve_app.stages.data_prep import DataPrep

        return DataPrep(config.governance.limit_s)
    if name == "governance":
        from serve_app.stages.governance import Governance

        return Governance(config.governance)
    if name == "routing":
        from cluster.embedding import MiniLM, routing_embedder
        from serve_app.routing.router import Router
        from serve_app.stages.routing import Routing, lazily

        router = Router(Path(config.routing.artefact))
        embed = routing_embedder(config.routing.precision)
        return Routing(embed, lazily(MiniLM), router, config.routing, base_name(config))
    if name == "policy":
        from serve_app.stages.policy import Policy

        return Policy(config.policy)
    if name == "context":
        from serve_app.context.index import DocumentIndex
        from serve_app.stages.context import Context

        return Context(DocumentIndex(Path(config.context.index)), config.context)
    if name == "monitoring":
        from serve_app.stages.monitoring import Monitoring

        return Monitoring(config.monitoring)
    if name == "audit":
        from serve_app.stages.audit import Audit

        writer = ChainWriter(config.audit_dir, replica)
        control = ControlClient()
        return Audit(writer, control.usage, control.labels)
    raise ValueError(f"unknown stage {name!r}; the stages are {', '.join(STAGES)}")


class StageReplica:
    """One replica of a stage."""

    def __init__(self, name: str, config: ServeConfig) -> None:
        share_interpreter()
        log_with_serve()
        stay_on_loopback()
        replica = serve.get_replica_context().replica_id.unique_id
        self._stage = make_stage(name, config, replica)
        self._under_way = 0
        self._server = Server(replica, {"run": self.run})

    async def address(self, host: str | None) -> Address:
        """Where gateways call this replica; without `host`, on its node's address."""
        return await self._server.address(host or node_address())

    async def __del__(self) -> None:
        # Serve awaits this before it stops the replica; batches under way are seen out.
        await self._server.leave()

    async def run(self, step: str, rows: list[Row], deadlines: list[float]) -> list[Any]:
        """Hand the batch to the stage."""
        self._under_way += len(rows)
        try:
            return await run(self._stage, STEPS[step], rows, deadlines)
        finally:
            self._under_way -= len(rows)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Serve asks for this now and then: see `serve_app.pipeline.scaling`."""
        return {WORK: float(self._under_way)}


class Gateway:
    """One replica of the HTTP edge, with the stages that are fused into it."""

    def __init__(
        self,
        config: ServeConfig,
        engine: DeploymentHandle,
        plain: dict[str | None, DeploymentHandle],
        stages: dict[str, DeploymentHandle],
    ) -> None:
        """`plain` are the engines without adapters, by the version that each serves."""
        share_interpreter()
        log_with_serve()
        stay_on_loopback()
        self._config = config
        self._control = ControlClient()
        self._table = RoutingTable(0)
        replica = serve.get_replica_context().replica_id.unique_id
        host = _LOOPBACK if config.nodes == "one" else None
        calls = {
            name: _remote(_pool(name, handle, host)) if config.calls == "direct" else _by(handle)
            for name, handle in stages.items()
        }
        for name in STAGES:
            if name not in calls:
                calls[name] = _local(make_stage(name, config, replica))
        runners = _runners(calls, config, remote=set(stages))
        cache = ResponseCache(config.cache, config.policy_version)
        profile = ModelProfile(config.engine.max_model_len, CAPABILITIES)
        targets = Targets(base_name(config), profile)
        provider = self._provider(engine, plain, host, targets.base)
        self._attempts = Attempts(provider, lambda: self._table, cache, targets)
        self._pipeline = Pipeline(
            runners, self._attempts, masks_answers=config.governance.answer_values == "mask"
        )
        self._follower: asyncio.Task[None] | None = None
        self._reporter: asyncio.Task[None] | None = None
        self._replica = replica

    def _provider(
        self,
        engine: DeploymentHandle,
        plain: dict[str | None, DeploymentHandle],
        host: str | None,
        base: Target,
    ) -> Provider:
        def share(name: str) -> float:
            return self._table.shares.get(name, 0.0)

        main = VLLMReplicas(_pool(ENGINE_DEPLOYMENT, engine, host), share)
        if not plain:
            return main
        # Every replica of a plain pool has all there is to have.
        dedicated = {
            version or base.id: VLLMReplicas(
                _pool(f"{version or 'base'}, plain", handle, host), lambda _: 1.0
            )
            for version, handle in plain.items()
        }
        return Pools(main, dedicated)

    async def __serve_build_asgi_app__(self) -> Any:
        """Serve calls this once the replica is constructed, and before it listens."""
        edge = self._config.gateway
        bounds = Bounds(
            edge.head_s, edge.body_s, edge.unread_s, per_address=edge.max_connections_per_address
        )
        share_ingress_port(edge.port, Connections(bounds).protocol)
        self._table = await self._control.serving.table()
        self._follower = asyncio.ensure_future(self._follow())
        self._reporter = asyncio.ensure_future(self._report())
        return create_app(
            pipeline=self._pipeline,
            authenticate=Authenticator(
                self._control.keys.resolve,
                self._config.gateway.key_cache_s,
                lambda: self._table.keys,
                rates=Rates(edge.management_rpm),
            ),
            table=lambda: self._table,
            base_model=base_name(self._config),
            config=self._config.gateway,
            count_tokens=token_counter(),
            budgets=Budgets(
                self._control.ledger.exchange,
                self._config.engine.max_model_len,
                self._config.context.stitched,
                base_name(self._config),
            ),
            control=self._control,
            most_characters=most_characters(
                Path(self._config.base_model.path), self._config.engine.max_model_len
            ),
            rerouted=self._config.policy.reroutes,
        )

    async def _follow(self) -> None:
        """Keep the routing table current; the last one known serves while the control is away."""
        while True:
            try:
                table = await self._control.serving.watch(self._table.generation, _WATCH_S)
                if table.generation > self._table.generation:
                    self._table = table
            except Exception:  # restarts of the control plane must not stop the gateway
                await asyncio.sleep(1.0)

    async def _report(self) -> None:
        """Report the evidence of rollouts to the control plane, at least once."""
        while True:
            await asyncio.sleep(_REPORT_S)
            if reports := self._attempts.trials.reports(self._replica):
                try:
                    await self._control.rollouts.report(reports)
                except Exception:  # restarts of the control plane must not stop the gateway
                    logger.warning("the evidence of rollouts could not be reported; trying again")
                    self._attempts.trials.requeue(reports)


def _runners(
    calls: dict[str, StageCall], config: ServeConfig, remote: set[str]
) -> dict[str, StepRunner]:
    """A runner for each step; the two steps of one stage share its breaker and its metrics."""
    breakers = {name: Breaker(getattr(config.stages, name).breaker) for name in STAGES}
    metrics = {name: RayStageMetrics(name) for name in STAGES}
    calls_a_request = sum(step.stage in remote for step in STEPS.values())
    sizer = BatchSizer(stages=max(1, calls_a_request // _STEPS_A_CALL))
    made: dict[str, StepRunner] = {}
    for name, step in STEPS.items():
        kind = StageBatcher if step.gathers or step.stage in remote else LocalStage

        def batcher(
            settings: StageConfig,
            breaker: Breaker,
            step: Step = step,
            kind: type[StageBatcher] = kind,
        ) -> StageBatcher:
            return kind(
                step,
                calls[step.stage],
                settings,
                breaker=breaker,
                metrics=metrics[step.stage],
                sizer=sizer if step.stage in remote else None,
            )

        settings: StageConfig = getattr(config.stages, step.stage)
        made[name] = others = batcher(settings, breakers[step.stage])
        apart = _APART.get(step) if step.gathers or step.stage in remote else None
        if apart is not None:
            lane = {"max_batch": apart.batch, "linger_ms": 0.0, "budget_ms": _LONG_MS}
            # With a breaker of its own: what takes long says nothing of the stage.
            long = batcher(settings.model_copy(update=lane), Breaker(settings.breaker))
            made[name] = Lanes(others, long, apart.takes_long)
    return made


def _pool(name: str, handle: DeploymentHandle, host: str | None) -> Pool:
    # Serve keeps replicas alive, scales them and says which there are; requests go to them
    # directly, for a tenth of what its handle's call costs.
    async def discover() -> list[Address]:
        return list(await handle.broadcast("address", host).results_async())

    return Pool(name, discover)


def _remote(replicas: Pool) -> StageCall:
    async def call(step: Step, rows: list[Row], deadlines: list[float]) -> list[Any]:
        result: list[Any] = await replicas.call(
            "run", step.name, rows, deadlines, again=not step.once
        )
        return result

    return call


def _by(handle: DeploymentHandle) -> StageCall:
    # What crosses is ours, importable on both sides: Serve's cloudpickle would look for more.
    handle = handle.options(request_serialization="pickle", response_serialization="pickle")

    async def call(step: Step, rows: list[Row], deadlines: list[float]) -> list[Any]:
        result: list[Any] = await handle.run.remote(step.name, rows, deadlines)
        return result

    return call


def _local(stage: Stage) -> StageCall:
    async def call(step: Step, rows: list[Row], deadlines: list[float]) -> list[Any]:
        return await run(stage, step, rows, deadlines)

    return call


def _scaling(autoscaling: Autoscaling, *, by_requests: bool) -> dict[str, Any]:
    return {
        **({"policy": {"policy_function": POLICY}} if by_requests else {}),
        "min_replicas": autoscaling.min_replicas,
        "max_replicas": autoscaling.max_replicas,
        "initial_replicas": max(1, autoscaling.min_replicas),
        "target_ongoing_requests": autoscaling.target_ongoing_requests,
        "upscale_delay_s": autoscaling.upscale_delay_s,
        "downscale_delay_s": autoscaling.downscale_delay_s,
    }


def _stage_deployment(name: str, config: ServeConfig) -> Any:
    stage: StageConfig = getattr(config.stages, name)
    deployment = serve.deployment(
        StageReplica,
        name=name,
        autoscaling_config=_scaling(stage.autoscaling, by_requests=True),
        ray_actor_options={"num_cpus": stage.num_cpus},
        graceful_shutdown_timeout_s=5,
    )
    return deployment.bind(name, config)


def _engine_deployment(name: str, engine_class: type, config: EngineConfig) -> Any:
    return serve.deployment(
        engine_class,
        name=name,
        autoscaling_config=_scaling(config.autoscaling, by_requests=True),
        ray_actor_options={
            "num_cpus": config.num_cpus,
            "num_gpus": config.num_gpus,
            # vLLM reads its CPU settings from the environment of the process that starts it.
            "runtime_env": {"env_vars": {"VLLM_CPU_KVCACHE_SPACE": str(config.kv_cache_gib)}},
        },
        # Makes Serve await `reconfigure` before a replica takes traffic.
        user_config={},
        # A swap never waits for this; it bounds how long a stopped replica may finish streams.
        graceful_shutdown_timeout_s=_STREAM_LIMIT_S if config.num_gpus else 10,
        health_check_timeout_s=60,
    )


def build_graph(config: ServeConfig, engine_class: type = EngineReplica) -> Any:
    """The Serve application: gateway over seven stages and the engine."""
    engine = _engine_deployment(ENGINE_DEPLOYMENT, engine_class, config.engine)
    plain = {
        pool.version: _engine_deployment(f"{PLAIN_PREFIX}{number}", engine_class, pool.engine).bind(
            pool.model or config.base_model, pool.engine, pool.version
        )
        for number, pool in enumerate(config.plain)
    }
    fused = set(config.fuse) if config.placement == "fused" else set()
    stages = {name: _stage_deployment(name, config) for name in STAGES if name not in fused}
    gateway = serve.deployment(
        serve.ingress()(Gateway),
        name="gateway",
        autoscaling_config=_scaling(config.gateway.autoscaling, by_requests=False),
        ray_actor_options={"num_cpus": config.gateway.num_cpus},
        max_ongoing_requests=config.gateway.max_ongoing_requests,
        graceful_shutdown_timeout_s=10,
        # Every request is a record of audit; Serve's line for each takes a thirtieth of a gateway.
        logging_config={"enable_access_log": False},
    )
    return gateway.bind(config, engine.bind(config.base_model, config.engine), plain, stages)
