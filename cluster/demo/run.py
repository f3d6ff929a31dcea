"""Runs the demonstration: prepares it, writes its report, cleans up on every way out."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.config import load
from cluster.demo.config import DemoConfig
from cluster.errors import ConfigError
from cluster.launch import local as runtime
from cluster.launch.site import Site
from cluster.launch.up import disconnect, interrupt, stay
from cluster.progress import ProgressReporter
from cluster.storage import write_atomic

_CHECK_S = 60

if TYPE_CHECKING:
    from cluster.demo.scenario import Scenario


def run(
    *,
    config: Path,
    workdir: Path,
    data: str | None,
    port: int,
    report: Path | None,
    serve: bool,
) -> int:
    """Run the demonstration; 0 where every request was answered and the log verifies."""
    progress = ProgressReporter()
    workdir = workdir.resolve()
    runtime.require_free_port(port)
    settings = load(DemoConfig, config)
    site = Site.prepare(settings, workdir, progress)
    if data:
        check_source(site, settings, data)
    with (workdir / "driver.log").open("w", encoding="utf-8") as log, redirect_stdout(log):
        return _run(site, settings, data=data, port=port, report=report, serve=serve)


def _run(
    site: Site,
    config: DemoConfig,
    *,
    data: str | None,
    port: int,
    report: Path | None,
    serve: bool,
) -> int:
    progress, workdir = site.progress, site.workdir
    try:
        progress.step("Start a Ray cluster (token auth on; gateway and dashboard on loopback)")
        cluster = site.start_cluster()
        # After Ray, which installs a handler of its own that would skip the clean-up below.
        signal.signal(signal.SIGTERM, interrupt)
        progress.say(f"Ray at {cluster.address}, dashboard {cluster.dashboard}")
        # Ray reads its authentication settings when it is imported: after the cluster is up.
        from cluster.demo.scenario import Scenario

        scenario = Scenario(site, config, data=data, port=port)
        found = _steps(scenario)
        _write(found, report or workdir / "report.json", progress)
        if serve:
            _serve(scenario, progress)
    except KeyboardInterrupt:
        progress.say("interrupted; stopping what was started")
        return 130
    finally:
        disconnect()
        runtime.stop(workdir)
    good = not found["requests"]["failed"] and found["audit"]["verified"]
    return 0 if good and found["audit"]["records"] == found["requests"]["total"] else 1


def _steps(scenario: Scenario) -> dict[str, Any]:
    scenario.import_workload()
    scenario.deploy()
    scenario.fit_first_versions()

    async def live() -> None:
        await scenario.live_traffic()
        await scenario.label()
        await scenario.improve()
        await scenario.swap_in()
        await scenario.refuse_shuffled()
        await scenario.check_answers()

    asyncio.run(live())
    return scenario.verify()


def _write(found: dict[str, Any], path: Path, progress: ProgressReporter) -> None:
    # The report holds the demo's API key, so it is the owner's to read.
    write_atomic(path, json.dumps(found, indent=2) + "\n")
    path.chmod(0o600)
    progress.step(f"Done in {found['wall_s']:.0f} s; the report is {path}")
    for row in found["adapters"]:
        progress.say(
            f"{row['name']}@{row['version']} {row['state']:<8} base {row['base_accuracy']:.3f} -> "
            f"{row['accuracy']:.3f} on {row['heldout_rows']} held-out rows "
            f"({row['unseen_text_accuracy']:.3f} on texts never seen)"
        )
    for row in found["rejected"]:
        progress.say(f"{row['name']} refused: {row['reason']}")
    requests = found["requests"]
    progress.say(
        f"{requests['total']} requests, {requests['failed']} failed; orchestration "
        f"{found['orchestration_ms']:.0f} ms, inference {found['inference_ms']:.0f} ms a request"
    )


def _serve(scenario: Scenario, progress: ProgressReporter) -> None:
    progress.step("The cluster stays up; Ctrl-C or ./scripts/down stops it")
    progress.say(f"base URL  {scenario.base_url}")
    progress.say(f"API key   {scenario.key}")
    assert scenario.site.cluster is not None
    progress.say(f"dashboard {scenario.site.cluster.dashboard}")
    progress.say(
        f"try: curl -s {scenario.base_url}/chat/completions "
        f"-H 'Authorization: Bearer {scenario.key}' "
        "-H 'Content-Type: application/json' "
        '-d \'{"model": "auto", "messages": [{"role": "user", "content": "thank you so much"}]}\''
    )
    stay(scenario.site.workdir)


def check_source(site: Site, config: DemoConfig, data: str) -> None:
    """Ask the import job whether `data` is what it can read, before anything is started.

    Raises:
        ConfigError: it is not.
    """
    settings: dict[str, object] = {"data": str(Path(data).resolve())}
    command = site.module_command("data_jobs.main", config.data, settings)
    found = subprocess.run(  # noqa: S603 - our own command line, no shell
        [*command[:3], "import", *command[3:], "--check"],
        capture_output=True,
        text=True,
        timeout=_CHECK_S,
        check=False,
    )
    if found.returncode != 0:
        last = found.stderr.strip().rpartition("\n")[2]
        raise ConfigError(last.partition(": ")[2] or last)
