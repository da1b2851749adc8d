"""What is logged of the rollouts of one environment of several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from counterpoint.train.foreign.choose import Chosen
from counterpoint.train.scoring.function_rewards import ENVIRONMENT


def environment_metrics(prefix: str, environments: Chosen, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Of one of several environments: share of invalid rollouts, means of the others."""
    valid = [
        {
            name.partition("/")[2]: value
            for name, value in row["rewards"].items()
            if name.partition("/")[0] == ENVIRONMENT
        }
        for row in rows
        if "invalid" not in row
    ]
    out = {f"{prefix}/invalid": 1 - len(valid) / len(rows)}
    out[f"{prefix}/turns"] = sum(row["turn"] + 1 for row in rows) / len(rows)
    if valid:
        out[f"{prefix}/reward"] = sum(map(environments.weigh, valid)) / len(valid)
        for name in dict.fromkeys(name for each in valid for name in each if name):
            values = [each[name] for each in valid if name in each]
            out[f"{prefix}/rewards/{name}"] = sum(values) / len(values)
    return out
