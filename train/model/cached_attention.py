"""Attention of one new token a row to keys and values that are kept, with sinks, without copies of them for every head.

Legend: R rows, H query heads, G key/value heads, M = H / G, C columns (positions kept), D head size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch

DEFAULT_BATCH_TOKENS = 262_144
"""Tokens whose keys and values are kept at a time, 6.4 GB of gpt-oss-20b's: chosen, not measured. Draws do not depend
on it."""


class Kept(NamedTuple):
    """Some rows' keys and values (r, G, C, D). rows: which (r), None for all R. hidden_rC: columns that a row's new
    token does not see; it sees at least one."""

    rows: torch.Tensor | None
    key: torch.Tensor
    value: torch.Tensor
    hidden_rC: torch.Tensor


class Cached(Protocol):
    """Takes the place of a mask where one new token a row is read."""

    def kept(self, layer: int) -> Iterator[Kept]:
        """What the rows of a layer attend to, each row in one part."""
        ...


def cached_attention(
    query_RH1D: torch.Tensor, sink_H: torch.Tensor, cached: Cached, layer: int, scale: float
) -> torch.Tensor:
    """(R, 1, H, D); scores and their sums are in float32 at least."""
    rows, heads, _, size = query_RH1D.shape
    wide = torch.promote_types(query_RH1D.dtype, torch.float32)
    out_R1HD = query_RH1D.new_empty(rows, 1, heads, size)
    for part in cached.kept(layer):
        groups = part.key.shape[1]
        query_RHD = query_RH1D[:, :, 0]
        query_rGMD = (query_RHD if part.rows is None else query_RHD[part.rows]).unflatten(1, (groups, -1))
        scores_rGMC = (query_rGMD @ part.key.mT).to(wide).mul_(scale)
        scores_rGMC.masked_fill_(part.hidden_rC[:, None, None], -torch.inf)
        sink_GM1 = sink_H.to(wide).view(groups, -1, 1)
        top_rGM1 = torch.maximum(scores_rGMC.amax(-1, keepdim=True), sink_GM1)
        scores_rGMC.sub_(top_rGM1).exp_()
        sum_rGM1 = scores_rGMC.sum(-1, keepdim=True).add_(torch.exp(sink_GM1 - top_rGM1))
        found_rHD = (
            (scores_rGMC.to(part.value.dtype) @ part.value).to(wide).div_(sum_rGM1).flatten(1, 2).to(out_R1HD.dtype)
        )
        if part.rows is None:
            out_R1HD[:, 0] = found_rHD
        else:
            out_R1HD[part.rows, 0] = found_rHD
    return out_R1HD
