"""Steps between the sources and the published rows: one file each, and one row in `Step`."""

from __future__ import annotations

from data_jobs.steps.shuffle_labels import ShuffleLabels

#: A tagged union once there is a second kind: `type` tells them apart.
Step = ShuffleLabels
