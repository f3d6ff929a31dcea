"""Scripts run by a Python of their own: an engine's process imports the script that started it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def run_script(path: Path, source: str, wanted: dict[str, Any]) -> Any:
    """What `source` prints as JSON after the word FOUND; it reads `wanted` from its input."""
    path.write_text(source)
    done = subprocess.run(
        ["env", "VLLM_CPU_KVCACHE_SPACE=1", sys.executable, str(path)],
        input=json.dumps(wanted),
        capture_output=True,
        text=True,
        timeout=300,
        cwd=path.parent,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("FOUND "))
    return json.loads(line.removeprefix("FOUND "))
