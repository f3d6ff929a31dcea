"""Runs the demo: prepares, turns the wheel, writes the report, cleans up on every way out."""

from __future__ import annotations

import asyncio
import json
import signal
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster import runtime
from cluster.storage import write_atomic
from cluster.wheel.narrator import Narrator
from cluster.wheel.site import Site
from cluster.wheel.up import disconnect, interrupt, stay

if TYPE_CHECKING:
    from cluster.wheel.turn import Turn


def run(
    *,
    config: Path,
    workdir: Path,
    data: str | None,
    port: int,
    report: Path | None,
    serve: bool,
) -> int:
    """One turn of the wheel; 0 where every request was answered and the log verifies."""
    narrator = Narrator()
    workdir = workdir.resolve()
    runtime.require_free_port(port)
    site = Site.prepare(config, workdir, narrator)
    if data:
        site.check_source(data)
    with (workdir / "driver.log").open("w", encoding="utf-8") as log, redirect_stdout(log):
        return _run(site, data=data, port=port, report=report, serve=serve)


def _run(site: Site, *, data: str | None, port: int, report: Path | None, serve: bool) -> int:
    narrator, workdir = site.narrator, site.workdir
    try:
        narrator.step("Start a Ray cluster (token auth on; gateway and dashboard on loopback)")
        cluster = site.start_cluster()
        # After Ray, which installs a handler of its own that would skip the clean-up below.
        signal.signal(signal.SIGTERM, interrupt)
        narrator.say(f"Ray at {cluster.address}, dashboard {cluster.dashboard}")
        # Ray reads its authentication settings when it is imported: after the cluster is up.
        from cluster.wheel.turn import Turn

        turn = Turn(site, data=data, port=port)
        found = _steps(turn)
        _write(found, report or workdir / "report.json", narrator)
        if serve:
            _serve(turn, narrator)
    except KeyboardInterrupt:
        narrator.say("interrupted; stopping what was started")
        return 130
    finally:
        disconnect()
        runtime.stop(workdir)
    good = not found["requests"]["failed"] and found["audit"]["verified"]
    return 0 if good and found["audit"]["records"] == found["requests"]["total"] else 1


def _steps(turn: Turn) -> dict[str, Any]:
    turn.import_workload()
    turn.deploy()
    turn.fit_first_versions()

    async def live() -> None:
        await turn.live_traffic()
        await turn.label()
        await turn.improve()
        await turn.swap_in()
        await turn.refuse_shuffled()
        await turn.check_answers()

    asyncio.run(live())
    return turn.verify()


def _write(found: dict[str, Any], path: Path, narrator: Narrator) -> None:
    # The report holds the demo's API key, so it is the owner's to read.
    write_atomic(path, json.dumps(found, indent=2) + "\n")
    path.chmod(0o600)
    narrator.step(f"Done in {found['wall_s']:.0f} s; the report is {path}")
    for row in found["adapters"]:
        narrator.say(
            f"{row['name']}@{row['version']} {row['state']:<8} base {row['base_accuracy']:.3f} -> "
            f"{row['accuracy']:.3f} on {row['heldout_rows']} held-out rows "
            f"({row['unseen_text_accuracy']:.3f} on texts never seen)"
        )
    for row in found["rejected"]:
        narrator.say(f"{row['name']} refused: {row['reason']}")
    requests = found["requests"]
    narrator.say(
        f"{requests['total']} requests, {requests['failed']} failed; orchestration "
        f"{found['orchestration_ms']:.0f} ms, inference {found['inference_ms']:.0f} ms a request"
    )


def _serve(turn: Turn, narrator: Narrator) -> None:
    narrator.step("The cluster stays up; Ctrl-C or ./scripts/down stops it")
    narrator.say(f"base URL  {turn.base_url}")
    narrator.say(f"API key   {turn.key}")
    assert turn.site.cluster is not None
    narrator.say(f"dashboard {turn.site.cluster.dashboard}")
    narrator.say(
        f"try: curl -s {turn.base_url}/chat/completions -H 'Authorization: Bearer {turn.key}' "
        "-H 'Content-Type: application/json' "
        '-d \'{"model": "auto", "messages": [{"role": "user", "content": "thank you so much"}]}\''
    )
    stay(turn.site.workdir)
