"""Deploy the serving graph to a running cluster: `python -m serve_app.main --config FILE`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cluster.config import load
from cluster.errors import HeadraceError
from serve_app.config import ServeConfig


def main(arguments: list[str] | None = None) -> int:
    """Parse, check, deploy; the application outlives this process."""
    parser = argparse.ArgumentParser(prog="serve_app.main", description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--workdir", type=Path, required=True, help="of the running cluster")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--check", action="store_true", help="only read the configuration")
    options = parser.parse_args(arguments)
    try:
        config = load(ServeConfig, options.config, options.set)
        if options.check:
            return 0
        _deploy(config, options.workdir)
    except HeadraceError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - a command's own output
        return 2
    return 0


def _deploy(config: ServeConfig, workdir: Path) -> None:
    from cluster.launch.local import attach, require_cluster

    cluster = require_cluster(workdir)
    attach(cluster)
    from ray import serve

    from cluster.base_models import describe
    from cluster.control.client import ControlClient
    from cluster.control.protocol import SERVE_APP
    from serve_app.graph import build_graph

    control = ControlClient()
    info = describe(Path(config.base_model.path))
    for label in control.do(control.serving.serve_base(info, control.name)):
        print(f"{label} stands on another base model: fit it again")  # noqa: T201 - as above

    serve.start(http_options={"host": config.gateway.host, "port": cluster.proxy_port})
    serve.run(build_graph(config), name=SERVE_APP, route_prefix="/")


if __name__ == "__main__":
    sys.exit(main())
