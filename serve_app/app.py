"""Serve's import path: `serve_app.app:build_app` makes the application from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from cluster.config import load
from serve_app.config import ServeConfig


class AppArgs(BaseModel):
    """Arguments of the application builder, as a Serve configuration file gives them."""

    config: str
    overrides: tuple[str, ...] = ()


def build_app(args: AppArgs) -> Any:
    """The application that `args.config` describes."""
    from serve_app.graph import build_graph

    return build_graph(load(ServeConfig, Path(args.config), args.overrides))
