"""The scripted annotator: plays the data set's own annotations back through the label queue's API.

It stands where a subject-matter expert stands, and every label it gives says so.
"""

from __future__ import annotations

from collections.abc import Mapping

import aiohttp

from cluster.answer import masked_example
from cluster.progress import Bar
from cluster.workload import TurnRecord

NAME = "scripted:dataset-annotations"
_CLAIM = 200


async def annotate(base_url: str, key: str, turns: Mapping[str, TurnRecord], bar: Bar) -> int:
    """Claim tasks until the queue is empty and answer each from `turns`; returns how many.

    A task whose turn is unknown is left in the queue: the script knows no more than the data.
    """
    total = 0
    headers = {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(headers=headers, raise_for_status=True) as session:
        while True:
            body = {"annotator": NAME, "limit": _CLAIM}
            async with session.post(f"{base_url}/labels/claim", json=body) as response:
                tasks = (await response.json())["tasks"]
            labels = []
            for task in tasks:
                turn = turns.get(task["metadata"].get("turn_id", ""))
                if turn is not None:
                    _, answer = masked_example(turn.text, turn.answer)
                    labels.append(
                        {
                            "trace_id": task["trace_id"],
                            "adapter": turn.domain,
                            "answer": answer.text(),
                            "rationale": "annotation that came with the data",
                            "annotator": NAME,
                        }
                    )
            if not labels:
                return total
            async with session.post(f"{base_url}/labels", json={"labels": labels}) as response:
                total += int((await response.json())["accepted"])
            bar.advance(len(labels))
