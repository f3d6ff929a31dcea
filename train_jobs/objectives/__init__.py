"""Training objectives: one file each, and one row in `Objective`."""

from __future__ import annotations

from train_jobs.objectives.supervised import Supervised

#: A tagged union once there is a second kind: `type` tells them apart.
Objective = Supervised
