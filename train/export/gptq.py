"""Calibrated rounding to MXFP4: GPTQ, coordinate descent, and a gain that keeps the size of the change.

Legend: E experts, O outputs, I inputs of a projection. With H = sum of w^2 x x^T over the inputs that reach an expert
(w its routing weight), tr (Q - T) H (Q - T)^T is the squared error of its output. GPTQ rounds input by input and lets
the others make up for it (Frantar et al., 2022, arXiv 2210.17323); descent then moves single numbers while that lowers
the error. Both shrink the change, since the least error is at less than all of it: T = base + c change, with c such
that the share of the change in the output, s = tr (Q - base) H change^T / tr change H change^T, is 1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from counterpoint.train.model.mxfp4_grid import nearest, nearest_value, raised, steps_of, values_of

DAMPING = 0.01
"""Of the mean of H's diagonal, added to it."""
BLOCK = 128
"""Inputs whose corrections of the later ones are made together, in one matrix product."""
PASSES = 3
GAIN_ROWS, GAIN_ROUNDS, GAIN_TOLERANCE, GAIN_LIMIT = 256, 4, 0.02, 4.0


class Calibrated(NamedTuple):
    """codes (E, O, I), scales (E, O, I / 32), and the factor c of each expert (E,)."""

    codes: torch.Tensor
    scales: torch.Tensor
    gain: torch.Tensor


def calibrated(
    base_EOI: torch.Tensor, change_EOI: torch.Tensor, scales_EOG: torch.Tensor, gram_EII: torch.Tensor,
    passes: int = PASSES,
) -> Calibrated:  # fmt: skip
    """Codes of base + change (float32) that keep the output. scales: of the base; gram: H, positive for some input."""
    gram_EII = damped(gram_EII)
    factor = _Factor.of(gram_EII)
    outputs = base_EOI.shape[1]
    rows = torch.linspace(0, outputs - 1, min(GAIN_ROWS, outputs)).round().long().to(base_EOI.device)
    some_EoI, change_EoI, scales_EoG = base_EOI[:, rows], change_EOI[:, rows], scales_EOG[:, rows]
    gain_E = base_EOI.new_ones(len(base_EOI))
    for _ in range(GAIN_ROUNDS):
        codes, scales = _solved(some_EoI, change_EoI, scales_EoG, gram_EII, factor, gain_E, passes)
        share_E = output_share(values_of(codes, scales) - some_EoI, change_EoI, gram_EII)
        off_E = (share_E - 1).abs() > GAIN_TOLERANCE
        if not off_E.any():
            break
        wanted_E = gain_E / share_E.clamp_min(1e-6)
        gain_E = torch.where(off_E, wanted_E, gain_E).clamp(max=GAIN_LIMIT)
    codes, scales = _solved(base_EOI, change_EOI, scales_EOG, gram_EII, factor, gain_E, passes)
    return Calibrated(codes, scales, gain_E)


def output_share(left_EOI: torch.Tensor, change_EOI: torch.Tensor, gram_EII: torch.Tensor) -> torch.Tensor:
    """How much of the change there is in the output of what is left (E,); 1 where nothing changes."""
    through_EOI = change_EOI @ gram_EII
    whole_E = (through_EOI * change_EOI).sum((1, 2))
    return torch.where(whole_E > 0, (through_EOI * left_EOI).sum((1, 2)) / whole_E, 1.0)


def output_error(error_EOI: torch.Tensor, gram_EII: torch.Tensor) -> torch.Tensor:
    """tr error H error^T of each expert (E,)."""
    return ((error_EOI @ gram_EII) * error_EOI).sum((1, 2))


def damped(gram_EII: torch.Tensor) -> torch.Tensor:
    mean_E = gram_EII.diagonal(dim1=-2, dim2=-1).mean(-1)
    return gram_EII + torch.diag_embed((DAMPING * mean_E)[:, None].expand(-1, gram_EII.shape[-1]))


class _Factor(NamedTuple):
    """order_EI: inputs by falling diagonal of H. upper_EII: U of U^T U = H^-1 in that order."""

    order_EI: torch.Tensor
    upper_EII: torch.Tensor

    @staticmethod
    def of(gram_EII: torch.Tensor) -> _Factor:
        order_EI = gram_EII.diagonal(dim1=-2, dim2=-1).argsort(dim=-1, descending=True, stable=True)
        sorted_EII = gram_EII.double().take_along_dim(order_EI[:, :, None], 1).take_along_dim(order_EI[:, None], 2)
        inverse_EII = torch.cholesky_inverse(torch.linalg.cholesky(sorted_EII))
        return _Factor(order_EI, torch.linalg.cholesky(inverse_EII).mT.float().contiguous())


def _solved(
    base_EOI: torch.Tensor, change_EOI: torch.Tensor, scales_EOG: torch.Tensor, gram_EII: torch.Tensor,
    factor: _Factor, gain_E: torch.Tensor, passes: int,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    target_EOI = base_EOI + gain_E[:, None, None] * change_EOI
    scales_EOG = raised(scales_EOG, target_EOI)
    step_EOI = steps_of(scales_EOG)
    found_EOI = gptq(target_EOI, step_EOI, factor.order_EI, factor.upper_EII)
    found_EOI = descend(found_EOI, target_EOI, step_EOI, gram_EII, passes)
    return nearest(found_EOI, scales_EOG), scales_EOG


def gptq(
    target_EOI: torch.Tensor, step_EOI: torch.Tensor, order_EI: torch.Tensor, upper_EII: torch.Tensor
) -> torch.Tensor:
    """Numbers on the grid, one input after another in `order`, each error spread over the inputs that follow."""
    index = order_EI[:, :, None].expand(-1, -1, target_EOI.shape[1])
    # Inputs first, so that what is read and written for one of them lies together.
    left_EIO, step_EIO = (each.mT.gather(1, index) for each in (target_EOI, step_EOI))
    found_EIO = torch.empty_like(left_EIO)
    inputs = len(left_EIO[0])
    for first in range(0, inputs, BLOCK):
        last = min(first + BLOCK, inputs)
        error_ECO = torch.empty_like(left_EIO[:, first:last])
        for i in range(first, last):
            now = left_EIO[:, i]
            found_EIO[:, i] = nearest_value(now, step_EIO[:, i])
            error = torch.div(now - found_EIO[:, i], upper_EII[:, i, i, None], out=error_ECO[:, i - first])
            left_EIO[:, i + 1 : last].baddbmm_(upper_EII[:, i, i + 1 : last, None], error[:, None], alpha=-1)
        left_EIO[:, last:].baddbmm_(upper_EII[:, first:last, last:].mT, error_ECO, alpha=-1)
    return torch.empty_like(found_EIO).scatter_(1, index, found_EIO).mT


def descend(
    found_EOI: torch.Tensor, target_EOI: torch.Tensor, step_EOI: torch.Tensor, gram_EII: torch.Tensor, passes: int
) -> torch.Tensor:
    """Moves single numbers to where tr (Q - T) H (Q - T)^T is least, input by input; never raises it."""
    found_EIO = found_EOI.mT.clone(memory_format=torch.contiguous_format)
    target_EIO, step_EIO = target_EOI.mT.contiguous(), step_EOI.mT.contiguous()
    inputs = len(found_EIO[0])
    diagonal_EI = gram_EII.diagonal(dim1=-2, dim2=-1)
    for _ in range(passes):
        slope_EIO = gram_EII @ (found_EIO - target_EIO)
        for first in range(0, inputs, BLOCK):
            last = min(first + BLOCK, inputs)
            moves_ECO = torch.empty_like(slope_EIO[:, first:last])
            for i in range(first, last):
                now, slope, curve = found_EIO[:, i], slope_EIO[:, i], diagonal_EI[:, i, None]
                move = nearest_value(now - slope / curve, step_EIO[:, i]) - now
                move = torch.where(move * (2 * slope + move * curve) < 0, move, 0.0)
                now += move
                moves_ECO[:, i - first] = move
                slope_EIO[:, i + 1 : last].baddbmm_(gram_EII[:, i + 1 : last, i, None], move[:, None])
            slope_EIO[:, last:].baddbmm_(gram_EII[:, last:, first:last], moves_ECO)
    return found_EIO.mT
