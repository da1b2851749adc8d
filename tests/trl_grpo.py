"""TRL's GRPOTrainer as the oracle of our loss on rewards: it is handed rollouts, scores them and computes its loss."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from datasets import Dataset
from row_tokenizer import RowTokenizer, restore_stops
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from counterpoint.train.model.load import LoadedModel
from counterpoint.train.sampling.rollout import SampledRow


class Oracle(GRPOTrainer):
    """TRL on rollouts that are given. Where they have log-probabilities, as if vLLM had sampled them."""

    def __init__(
        self,
        loaded: LoadedModel,
        folder: Path,
        rows: Sequence[SampledRow],
        scores: Sequence[Sequence[float]],
        weights: Sequence[float],
        group: int,
        **settings: Any,
    ) -> None:
        to_rows = loaded.vocabulary_map.rows

        def roll(prompts: list[str], trainer: Any) -> dict[str, Any]:
            told = [row.logprobs for row in rows]
            return {
                "prompt_ids": [to_rows(row.prompt_ids).tolist() for row in rows],
                "completion_ids": [to_rows(row.completion_ids).tolist() for row in rows],
                "env_mask": [list(row.env_mask) for row in rows],
                "logprobs": told if told[0] is not None else None,
            }

        def reward(k: int) -> Any:
            def score(**columns: Any) -> list[float]:
                return [each[k] for each in scores]

            score.__name__ = f"reward_{k}"
            return score

        args = GRPOConfig(
            output_dir=str(folder),
            per_device_train_batch_size=len(rows),
            num_generations=group,
            reward_weights=list(weights),
            max_completion_length=settings.pop("longest", 256),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            max_steps=1,
            disable_dropout=True,
            vllm_importance_sampling_correction=settings.get("vllm_importance_sampling_mode") is not None,
            **{name: value for name, value in settings.items() if value is not None},
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="You are using 'rollout_func'")
            super().__init__(
                model=loaded.model,
                reward_funcs=[reward(k) for k in range(len(weights))],
                args=args,
                train_dataset=Dataset.from_dict({"prompt": ["0"]}),
                processing_class=RowTokenizer(loaded),
                rollout_func=roll,
            )
        restore_stops(loaded)
        self.current_gradient_accumulation_steps = 1
        if rows[0].logprobs is not None:
            self.use_vllm, self._last_loaded_step = True, -1
            self.vllm_generation = SimpleNamespace(sync_weights=lambda: None)

    def batch(self) -> dict[str, Any]:
        """Scored, with everything that the loss takes."""
        assert self.model is not None
        self.model.train()
        n = self.args.per_device_train_batch_size
        return self._generate_and_score_completions([{"prompt": "0"} for _ in range(n)])

    def loss(self, batch: dict[str, Any]) -> Any:
        return self._compute_loss(self.model, batch)

    def told(self, name: str) -> float:
        """The last value of a metric."""
        return self._metrics["train"][name][-1]
