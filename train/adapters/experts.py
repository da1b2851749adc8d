"""Experts with LoRA, lean: `(x A_e) B_e` on the routed tokens, never a weight-sized delta."""

from __future__ import annotations

from peft.tuners.lora.layer import ParamWrapper as PeftParamWrapper


class ParamWrapper(PeftParamWrapper):
    """PEFT's wrapper of one expert parameter."""
