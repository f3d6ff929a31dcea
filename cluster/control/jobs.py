"""Jobs on the cluster: submitted by entry-point string with `ray job submit`, polled to the end.

This is how the control side starts a data or training job it does not import. Ray reads its
authentication settings when it is imported, so it is imported only when a job is awaited.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import HeadraceError

LogSink = Callable[[str], None]

_POLL_S = 0.5
_SUBMIT_TIMEOUT_S = 120


class JobFailed(HeadraceError):
    """A job ended in failure; the message carries the end of its log."""


@dataclass(frozen=True)
class Job:
    """A submitted job."""

    id: str
    address: str

    def wait(self, timeout_s: float, on_log: LogSink | None = None) -> None:
        """Wait for success; `on_log` gets each new complete line of the job's log.

        Raises:
            JobFailed: the job failed, was stopped, or ran past `timeout_s` and was stopped.
        """
        from ray.job_submission import JobStatus, JobSubmissionClient

        client = JobSubmissionClient(self.address)
        deadline, seen = time.monotonic() + timeout_s, 0
        while True:
            status = client.get_job_status(self.id)
            if on_log is not None:
                lines = client.get_job_logs(self.id).splitlines(keepends=True)
                whole = [line for line in lines if line.endswith("\n")]
                for line in whole[seen:]:
                    on_log(line.rstrip("\n"))
                seen = len(whole)
            if status.is_terminal():
                break
            if time.monotonic() > deadline:
                client.stop_job(self.id)
                raise JobFailed(f"job {self.id} ran past {timeout_s:.0f} s and was stopped")
            time.sleep(_POLL_S)
        if status != JobStatus.SUCCEEDED:
            tail = "\n".join(client.get_job_logs(self.id).splitlines()[-25:])
            raise JobFailed(f"job {self.id} ended as {status.value}:\n{tail}")

    def stop(self) -> None:
        """Ask the cluster to stop the job."""
        from ray.job_submission import JobSubmissionClient

        JobSubmissionClient(self.address).stop_job(self.id)


def entrypoint(module: str, arguments: Sequence[str]) -> str:
    """The command line that runs `module` with this interpreter."""
    return shlex.join([sys.executable, "-m", module, *arguments])


def submit(address: str, job_id: str, module: str, arguments: Sequence[str]) -> Job:
    """Run `ray job submit`; `job_id` makes a repeated submission fail instead of running twice.

    Raises:
        JobFailed: Ray refused the job.
    """
    command = [
        str(Path(sys.executable).parent / "ray"),
        *("job", "submit", "--address", address, "--submission-id", job_id, "--no-wait", "--"),
        *shlex.split(entrypoint(module, arguments)),
    ]
    result = subprocess.run(  # noqa: S603 - our own command line, no shell
        command, capture_output=True, text=True, timeout=_SUBMIT_TIMEOUT_S, check=False
    )
    if result.returncode != 0:
        raise JobFailed(f"ray job submit refused {job_id}:\n{result.stdout}{result.stderr}"[-4000:])
    return Job(job_id, address)


def own_lines(package: str, say: LogSink) -> LogSink:
    """Passes on what our own job wrote of `package`, without Ray's lines and the libraries'."""

    def relay(line: str) -> None:
        clock, _, rest = line.partition(" ")
        if clock.count(":") == 2 and rest.startswith((f"INFO {package}", f"ERROR {package}")):
            say(rest.partition(": ")[2])

    return relay
