"""The sampler of hook and `evaluate` against transformers' `generate`: one prompt at a time, and one padded batch.

    python benchmarks/sampling.py [--model tiny|mid] [--samples N] [--threads N]

Random weights. A set of ids stands for the stop tokens, drawn so that samples end after `--mean` tokens on average and
at `--longest` at the latest, as real ones do (many short, a few long). Counted are the tokens that a sample keeps, up
to and with its stop token, by second of CPU. Each side runs the same prompts; the best of `--repeat` rounds is taken.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, GptOssConfig, GptOssForCausalLM

from counterpoint.data.conversation import EFFORTS
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.vocabulary import SPECIAL_IDS
from counterpoint.train.model.load import LoadedModel, finish_model
from counterpoint.train.model.tiny import random_tiny
from counterpoint.train.model.vocabulary_map import VocabularyMap
from counterpoint.train.sampling.sample import Sampler, inference
from counterpoint.train.scoring.prompts import load_prompts


def mid_size() -> LoadedModel:
    """About 24 M parameters: 6 layers, hidden 256, 16 experts of which 4 are active, 8,192 rows."""
    rows = random_tiny().vocabulary_map.ids(np.arange(random_tiny().vocabulary_map.n_rows)).tolist()
    more = [id_ for id_ in range(20_000) if id_ not in set(rows)][: 8192 - len(rows)]
    mapping = VocabularyMap.from_ids([*rows, *more])
    torch.manual_seed(0)
    config = GptOssConfig(
        vocab_size=mapping.n_rows,
        num_hidden_layers=6,
        hidden_size=256,
        intermediate_size=256,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=32,
        num_local_experts=16,
        num_experts_per_tok=4,
        initializer_range=0.05,
        router_aux_loss_coef=0.0,
    )
    return finish_model(GptOssForCausalLM(config), mapping, "mid-size")


def stops_of(loaded: LoadedModel, mean: float) -> list[int]:
    """Ids whose share of the vocabulary is 1 / mean: near random weights every id is about as likely."""
    ids = loaded.vocabulary_map.ids(np.arange(loaded.vocabulary_map.n_rows))
    text = [int(id_) for id_ in ids if id_ not in set(SPECIAL_IDS.values())]
    count = max(1, round(loaded.vocabulary_map.n_rows / mean))
    return sorted(np.random.default_rng(0).choice(text, count, replace=False).tolist())


def generated(loaded: LoadedModel, prompts: Sequence[Sequence[int]], stops: list[int], longest: int) -> int:
    """Tokens kept of one padded batch by `generate`."""
    width = max(map(len, prompts))
    rows = np.full((len(prompts), width), loaded.pad_row, dtype=np.int64)
    mask = np.zeros_like(rows)
    for row, filled, prompt in zip(rows, mask, prompts, strict=True):
        row[width - len(prompt) :] = loaded.vocabulary_map.rows(list(prompt))
        filled[width - len(prompt) :] = 1
    stop_rows = loaded.vocabulary_map.rows(stops).tolist()
    config = GenerationConfig(
        max_new_tokens=longest,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        eos_token_id=stop_rows,
        pad_token_id=loaded.pad_row,
    )
    with inference(loaded.model):
        out = loaded.model.generate(
            input_ids=torch.from_numpy(rows), attention_mask=torch.from_numpy(mask), generation_config=config
        )
    kept = 0
    for row in out[:, width:].numpy():
        ends = np.flatnonzero(np.isin(row, stop_rows))
        kept += int(ends[0]) + 1 if len(ends) else len(row)
    return kept


def measure(what: str, repeat: int, run: Callable[[], int]) -> float:
    """Tokens a second, the best round."""
    best = 0.0
    for _ in range(repeat):
        started = time.process_time()
        tokens = run()
        best = max(best, tokens / (time.process_time() - started))
    print(f"  {what:<34} {best:9,.0f} tokens/CPU s", flush=True)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("tiny", "mid"), action="append")
    parser.add_argument("--samples", type=int, default=96)
    parser.add_argument("--mean", type=float, default=64)
    parser.add_argument("--longest", type=int, default=256)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {args.threads} thread(s)")
    for name in args.model or ("tiny", "mid"):
        loaded: Any = random_tiny() if name == "tiny" else mid_size()
        renderer = Renderer(loaded.vocabulary)
        asked = [renderer.prompt(p.conversation, e) for p in load_prompts("example:quickstart_eval") for e in EFFORTS]
        prompts = asked[: args.samples]
        stops = stops_of(loaded, args.mean)
        parameters = sum(p.numel() for p in loaded.model.parameters()) / 1e6
        print(f"{name}: {parameters:.1f} M parameters, {len(prompts)} samples of at most {args.longest} tokens")
        seeds = list(range(len(prompts)))

        def sampled(loaded: Any = loaded, prompts: Any = prompts, stops: Any = stops, seeds: Any = seeds) -> int:
            return sum(len(s.ids) for s in Sampler(loaded).sample(prompts, args.longest, 1.0, seeds, stops))

        def one_by_one(loaded: Any = loaded, prompts: Any = prompts, stops: Any = stops) -> int:
            return sum(generated(loaded, [prompt], stops, args.longest) for prompt in prompts[: len(prompts) // 4])

        def in_one_batch(loaded: Any = loaded, prompts: Any = prompts, stops: Any = stops) -> int:
            return generated(loaded, prompts, stops, args.longest)

        single = measure("generate, one prompt at a time", args.repeat, one_by_one)
        batch = measure("generate, one padded batch", args.repeat, in_one_batch)
        ours = measure("Sampler", args.repeat, sampled)
        print(f"  Sampler is {ours / single:.1f} times the first and {ours / batch:.2f} times the second")


if __name__ == "__main__":
    main()
