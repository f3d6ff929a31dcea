"""The tiers that tests run in, from seconds to minutes; `scripts/test` runs them in this order."""

from __future__ import annotations

from pathlib import Path

TIERS = ("quick", "unit", "engine", "plane", "loop")
_TESTS = Path(__file__).parent

#: Modules of the unit tier, below `tests`: they load PyTorch, vLLM or Ray, start processes or a
#: PostgreSQL, or draw thousands of cases.
UNIT = frozenset(
    {
        "cluster/test_budget.py",
        "cluster/test_bundle.py",
        "cluster/test_cli.py",
        "cluster/test_control.py",
        "cluster/test_control_kills.py",
        "cluster/test_control_rollouts.py",
        "cluster/test_embedding.py",
        "cluster/test_processor.py",
        "cluster/test_registry.py",
        "cluster/test_rollout_simulation.py",
        "cluster/test_rollout_statistics.py",
        "cluster/test_usage.py",
        "data_jobs/test_pipeline.py",
        "fuzz/test_fuzz.py",
        "serve_app/test_admin.py",
        "serve_app/test_checkpoint.py",
        "serve_app/test_connections.py",
        "serve_app/test_delegation.py",
        "serve_app/test_hidden_names.py",
        "serve_app/test_remote_engine.py",
        "serve_app/test_engine_text.py",
        "serve_app/test_grouped.py",
        "serve_app/test_norms.py",
        "serve_app/test_probes.py",
        "test_how_to.py",
        "test_imports.py",
        "test_readme.py",
        "train_jobs/test_adopt.py",
        "train_jobs/test_evals.py",
        "train_jobs/test_loop.py",
        "train_jobs/test_peft_folder.py",
        "train_jobs/test_publish.py",
    }
)


def tier_of(path: Path) -> str:
    """The tier of a test module.

    Raises:
        ValueError: it is an integration test of no tier.
    """
    parts = path.relative_to(_TESTS).parts
    if parts[0] == "integration":
        if parts[1] not in TIERS:
            raise ValueError(f"{path}: integration tests live in engine/, plane/ or loop/")
        return parts[1]
    return "unit" if "/".join(parts) in UNIT else "quick"
