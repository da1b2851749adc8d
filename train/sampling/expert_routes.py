"""The experts that tokens went to where they were sampled, as they travel with them.

Legend: N tokens, L layers, K experts a token.
"""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import numpy.typing as npt

from counterpoint.configs.errors import ModelError

ExpertRoutes = npt.NDArray[Any]
"""(N, L, K) of the first N tokens of a sequence, unsigned. The last sampled token has none: it was never read."""


def joined(before: ExpertRoutes | None, now: ExpertRoutes | None) -> ExpertRoutes | None:
    """The routes of a longer sequence that begins with an earlier one, of which the earlier ones are kept: tokens that
    are read again may go elsewhere than they went when they were sampled."""
    if before is None or now is None:
        return now
    return np.concatenate([before, now[len(before) :]])


def encoded(routes: ExpertRoutes) -> str:
    """As vLLM's field `routed_experts`: a .npy file in base64."""
    with io.BytesIO() as file:
        np.save(file, routes, allow_pickle=False)
        return base64.b64encode(file.getvalue()).decode("ascii")


def told(routes: Any, tokens: int, where: str) -> ExpertRoutes:
    """What an engine says of a prompt and completion of `tokens` ids: an array, or vLLM's field `routed_experts`.

    ModelError where it says nothing, or something of other tokens. A stop token that the engine leaves out of its ids
    has not been read either way, and the one before it may not have been.
    """
    if routes is None:
        raise ModelError(
            f"{where}: it does not name the experts of its tokens (`routed_experts`): start vLLM 0.22 or later with "
            "--enable-return-routed-experts, or leave `rollout.routes` out"
        )
    try:
        found = routes
        if isinstance(routes, str):
            found = np.load(io.BytesIO(base64.b64decode(routes, validate=True)), allow_pickle=False)
        if not isinstance(found, np.ndarray) or found.ndim != 3 or found.dtype.kind not in "iu":
            raise ValueError("no whole numbers (tokens, layers, experts a token)")
    except (ValueError, EOFError, OSError) as error:
        raise ModelError(f"{where}: its `routed_experts` cannot be read: {error}") from None
    if not tokens - 2 <= len(found) <= tokens - 1:
        raise ModelError(f"{where}: its `routed_experts` are of {len(found)} tokens, and {tokens - 1} were read")
    return found
