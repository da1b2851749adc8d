"""vLLM in this process (extra `vllm`): token ids in, token ids out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from counterpoint.configs.errors import ConfigError
from counterpoint.configs.schema import VllmSettings
from counterpoint.data.harmony.vocabulary import STOP_IDS
from counterpoint.train.rollout.sample import Sampled, sample_seed


@dataclass
class VllmEngine:
    """One `vllm.LLM`, with the adapter it puts on every request, if any."""

    llm: Any
    adapter: Any = None

    @classmethod
    def started(cls, model: str, settings: VllmSettings, adapter: str | None = None) -> VllmEngine:
        """Load `model` (a folder or a name), with LoRA where `adapter` is a folder of one.

        ConfigError where vLLM is not installed, or does not start.
        """
        vllm = _module()
        options: dict[str, Any] = {
            "model": model,
            "tensor_parallel_size": settings.tensor_parallel,
            "gpu_memory_utilization": settings.gpu_memory,
            "max_model_len": settings.max_model_len,
            "skip_tokenizer_init": True,
            "trust_remote_code": False,
        }
        request = None
        if adapter is not None:
            from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]

            options |= {"enable_lora": True, "max_lora_rank": _rank(adapter)}
            request = LoRARequest("adapter", 1, adapter)
        try:
            return cls(vllm.LLM(**options), request)
        except Exception as error:
            told = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise ConfigError(f"eval.engine: vllm does not start: {told}") from error

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int | Sequence[int] = 0,
        stop_ids: Sequence[int] = STOP_IDS,
    ) -> list[Sampled]:
        """See `Engine`."""
        vllm = _module()
        seeds = [sample_seed(seed, i) for i in range(len(prompts))] if isinstance(seed, int) else list(seed)
        settings = [
            vllm.SamplingParams(
                max_tokens=max_new_tokens,
                temperature=temperature,
                seed=each,
                stop_token_ids=list(stop_ids),
                ignore_eos=True,
                detokenize=False,
            )
            for each in seeds
        ]
        outputs = self.llm.generate(
            [{"prompt_token_ids": [int(id_) for id_ in prompt]} for prompt in prompts],
            settings,
            lora_request=self.adapter,
            use_tqdm=False,
        )
        return [_sampled(output.outputs[0], stop_ids) for output in outputs]


def _sampled(output: Any, stop_ids: Sequence[int]) -> Sampled:
    ids = [int(id_) for id_ in output.token_ids]
    if output.finish_reason != "stop":
        return Sampled(ids, "length")
    if not ids or ids[-1] not in stop_ids:
        ids.append(int(output.stop_reason))
    return Sampled(ids, "stop")


def _module() -> Any:
    try:
        import vllm  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(
            f"eval.engine: vllm cannot be imported ({error}): pip install 'counterpoint[vllm]', or take `transformers`"
        ) from None
    return vllm


def _rank(adapter: str) -> int:
    """vLLM wants to know the largest rank of an adapter before it loads one."""
    import json
    from pathlib import Path

    try:
        config = json.loads((Path(adapter) / "adapter_config.json").read_text(encoding="utf-8"))
        return max([config["r"], *(config.get("rank_pattern") or {}).values()])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{adapter}: no adapter there ({error}): give a folder with adapter_config.json") from None
