"""What the simulated rollouts are tried by: see `rollout_world`."""

from cluster.rollout.plan import Guardrails, Phase, RolloutPlan, Trial

PLAN = RolloutPlan(
    phases=(
        Phase(percent=50, shadow=True, min_requests=40, min_seconds=5),
        Phase(percent=10, min_requests=60, min_seconds=5),
        Phase(percent=50, min_requests=60, min_seconds=5),
    ),
    guardrails=Guardrails(error_rate=0.02),
    give_up_s=4000,
)
#: So sure of itself that ten thousand schedules see no wrong verdict.
AB_TEST = RolloutPlan(
    phases=(
        Phase(percent=50, shadow=True, min_requests=40, min_seconds=5),
        Phase(
            percent=30,
            min_requests=60,
            min_seconds=5,
            trial=Trial(outcome="resolved", confidence=1 - 1e-7),
        ),
    ),
    guardrails=Guardrails(error_rate=0.02),
    give_up_s=4000,
)
