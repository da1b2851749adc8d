"""gpt-oss's clamped SwiGLU on interleaved gate and up, in plain torch.

Legend: R routed rows, I intermediate.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from counterpoint.train.model.precision import on_cuda


def activation(hidden_RJ: torch.Tensor, alpha: float, limit: float) -> torch.Tensor:
    """gpt-oss's clamped SwiGLU on interleaved gate and up: (R, 2 I) -> (R, I), computed in float32 at least."""
    gate_RI, up_RI = _split(hidden_RJ, limit)
    out_RI = F.silu(gate_RI.mul_(alpha), inplace=True)
    return torch.addcmul(out_RI, out_RI, up_RI).mul_(1 / alpha).to(hidden_RJ.dtype)


def activation_backward(
    hidden_RJ: torch.Tensor, grad_RI: torch.Tensor, alpha: float, limit: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(activation (R, I), gradient of h (R, 2 I)) from the gradient of the activation."""
    gate_RI, up_RI = _split(hidden_RJ, limit)
    scaled_RI = gate_RI.mul_(alpha)
    silu_RI = F.silu(scaled_RI)
    wide_RI = grad_RI.to(up_RI.dtype)
    grad_RJ = torch.empty_like(hidden_RJ)
    grad_up_RI = wide_RI * silu_RI
    grad_RJ[:, 1::2] = grad_up_RI.mul_(1 / alpha)
    out_RI = torch.addcmul(silu_RI, silu_RI, up_RI).mul_(1 / alpha).to(hidden_RJ.dtype)
    grad_gate_RI = torch.ops.aten.silu_backward(torch.addcmul(wide_RI, wide_RI, up_RI), scaled_RI)
    grad_RJ[:, 0::2] = grad_gate_RI
    # Checking first costs less than two masked passes, but on CUDA it would wait for the device.
    if on_cuda(hidden_RJ) or _reaches(hidden_RJ, limit):
        grad_RJ[:, 1::2].masked_fill_(hidden_RJ[:, 1::2].abs() > limit, 0)
        grad_RJ[:, 0::2].masked_fill_(hidden_RJ[:, 0::2] > limit, 0)
    return out_RI, grad_RJ


def _reaches(hidden_RJ: torch.Tensor, limit: float) -> bool:
    low, high = hidden_RJ.aminmax()
    return float(high) > limit or float(low) < -limit


def _split(hidden_RJ: torch.Tensor, limit: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Clamped gate and up, each contiguous, float32 for narrower types."""
    wide = torch.promote_types(hidden_RJ.dtype, torch.float32)
    return hidden_RJ[:, 0::2].clamp(max=limit).to(wide), hidden_RJ[:, 1::2].clamp(min=-limit, max=limit).to(wide)
