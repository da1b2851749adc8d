"""vLLM in this process (extra `vllm`): token ids in, token ids out.

Run with vLLM 0.32.0 on a CPU, where it agrees with transformers (docs/learning-measured.md); not run on a GPU.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from counterpoint.configs.errors import ConfigError, RunError
from counterpoint.configs.model_section import EMBEDDED_MODEL, ModelSettings
from counterpoint.configs.schema import VllmSettings
from counterpoint.data.harmony.vocabulary import STOP_IDS
from counterpoint.train.model.load import device_of, dtype_of
from counterpoint.train.model.vocabulary_map import MAP_FILE
from counterpoint.train.sampling.expert_routes import told
from counterpoint.train.sampling.sample import Sampled, known, sample_seed
from counterpoint.train.sampling.truncation import WHOLE, Truncation


@dataclass
class VllmEngine:
    """One `vllm.LLM`, with the adapter it puts on every request, if any. logprobs: whether samples have them.
    truncation: of the distribution that is drawn from. routes: whether samples have the experts of their tokens."""

    llm: Any
    adapter: Any = None
    logprobs: bool = False
    truncation: Truncation = WHOLE
    routes: bool = False

    @classmethod
    def started(
        cls,
        model: str,
        settings: VllmSettings,
        adapter: str | None = None,
        *,
        revision: str | None = None,
        rank: int | None = None,
        dtype: str | None = None,
        logprobs: bool = False,
        truncation: Truncation = WHOLE,
        routes: bool = False,
    ) -> VllmEngine:
        """Load `model` (a folder or a name), with LoRA where `adapter` is a folder of one, or for adapters up to `rank`
        that come later (`load_adapter`).

        dtype: None leaves it to vLLM, which makes bfloat16 of float32 weights. ConfigError where vLLM is not installed,
        cannot serve this, or does not start.
        """
        vllm = _module()
        check_vocabulary(model)
        options: dict[str, Any] = {
            "model": model,
            "tensor_parallel_size": settings.tensor_parallel,
            "gpu_memory_utilization": settings.gpu_memory,
            "max_model_len": settings.max_model_len,
            "skip_tokenizer_init": True,
            "trust_remote_code": False,
        }
        if revision is not None:
            options["revision"] = revision
        if dtype is not None:
            options["dtype"] = dtype
        if logprobs:
            # After temperature and truncation: the probabilities that the tokens were drawn with.
            options["logprobs_mode"] = "processed_logprobs"
        if routes:
            options["enable_return_routed_experts"] = True
        if adapter is not None:
            rank = highest_rank(adapter)
        if rank is not None:
            check_cpu()
        if on_cpu():
            options["enforce_eager"] = True  # compiling takes minutes, too long for the few samples that a CPU draws
        if rank is not None:
            options |= {"enable_lora": True, "max_lora_rank": vllm_rank(rank), "max_loras": 1}
        try:
            engine = cls(vllm.LLM(**options), None, logprobs, truncation, routes)
        except Exception as error:
            raise ConfigError(f"engine: vllm does not start: {_reason(error)}: see what it wrote above") from error
        if adapter is not None:
            engine.load_adapter(Path(adapter), 0)
        return engine

    def load_adapter(self, folder: Path, version: int) -> None:
        """Sample with the adapter in `folder` from now on. Each version needs a number of its own: vLLM keeps adapters
        and the prefixes computed with them under it."""
        from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]

        self.adapter = LoRARequest(f"adapter-{version}", version + 1, str(folder))

    def reload(self) -> None:
        """Read all weights again from the folder that vLLM was started on."""
        self.llm.collective_rpc("reload_weights")
        self.llm.reset_prefix_cache()

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
                top_p=self.truncation.top_p,
                top_k=self.truncation.top_k,
                min_p=self.truncation.min_p,
                seed=each,
                stop_token_ids=list(stop_ids),
                ignore_eos=True,
                detokenize=False,
                logprobs=0 if self.logprobs else None,
            )
            for each in seeds
        ]
        asked = [{"prompt_token_ids": [int(id_) for id_ in prompt]} for prompt in prompts]
        try:
            outputs = self.llm.generate(asked, settings, lora_request=self.adapter, use_tqdm=False)
        except Exception as error:
            raise RunError(f"engine: vllm failed: {_reason(error)}: see what it wrote above") from error
        found = [_sampled(output.outputs[0], stop_ids, self.logprobs) for output in outputs]
        if not self.routes:
            return found
        return [
            replace(
                each,
                routes=told(
                    getattr(output.outputs[0], "routed_experts", None), len(prompt) + len(each.ids), "engine: vllm"
                ),
            )
            for output, prompt, each in zip(outputs, prompts, found, strict=True)
        ]

    def cut(self, truncation: Truncation) -> Self:
        """See `Cuttable`."""
        return replace(self, truncation=truncation)


def _sampled(output: Any, stop_ids: Sequence[int], logprobs: bool) -> Sampled:
    ids = [int(id_) for id_ in output.token_ids]
    found: list[float | None] | None = None
    if logprobs:
        found = [known(each[id_].logprob) for id_, each in zip(ids, output.logprobs, strict=True)]
    if output.finish_reason != "stop":
        return Sampled(ids, "length", found)
    if not ids or ids[-1] not in stop_ids:
        ids.append(int(output.stop_reason))
        found = [*found, None] if found is not None else None
    return Sampled(ids, "stop", found)


def installed_version() -> str:
    """Version of vLLM; empty where it reports none. ConfigError where it is not installed."""
    return str(getattr(_module(), "__version__", ""))


def _module() -> Any:
    try:
        import vllm  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(
            f"engine: vllm cannot be imported ({error}): pip install 'counterpoint[vllm]', or take `transformers`"
        ) from None
    return vllm


def dtype_name(model: ModelSettings, device: str = "auto") -> str:
    """The number format that transformers would compute this model in."""
    return str(dtype_of(model.dtype, device_of(device))).removeprefix("torch.")


def check_vocabulary(model: str) -> None:
    """ConfigError for a model with a vocabulary of its own: vLLM takes ids for rows."""
    if model == EMBEDDED_MODEL or (Path(model).expanduser() / MAP_FILE).is_file():
        raise ConfigError(
            f"engine: vllm: `{model}` has a vocabulary of its own ({MAP_FILE}), which vLLM does not read: use "
            "`transformers`"
        )


def on_cpu() -> bool:
    """Whether this vLLM is a build for CPUs."""
    try:
        from vllm.platforms import current_platform  # pyright: ignore[reportMissingImports]
    except ImportError:
        return False
    return bool(current_platform.is_cpu())


def check_cpu() -> None:
    """ConfigError where adapters cannot be served: by a build for CPUs."""
    if on_cpu():
        # It would start, and die at the first prompt: with adapters its experts run on Triton alone.
        raise ConfigError(
            "engine: vLLM on a CPU serves no adapters of gpt-oss: give it merged weights (`rollout.weights: merged`, "
            "or the folder of `counterpoint export --to bf16`)"
        )


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's `max_lora_rank` may be."""


def vllm_rank(rank: int) -> int:
    """The smallest of the ranks that vLLM makes room for which holds `rank`. ConfigError where none does."""
    for room in RANKS:
        if rank <= room:
            return room
    raise ConfigError(f"engine: vllm serves adapters up to rank 512, and this one has {rank}: lower it, or merge it")


def highest_rank(adapter: str) -> int:
    """vLLM wants to know the largest rank of an adapter before it loads one."""
    try:
        config = json.loads((Path(adapter) / "adapter_config.json").read_text(encoding="utf-8"))
        return max([config["r"], *(config.get("rank_pattern") or {}).values()])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{adapter}: no adapter there ({error}): give a folder with adapter_config.json") from None
