"""One completion token by token, as it is drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from counterpoint.configs.errors import ModelError
from counterpoint.data.harmony.vocabulary import STOP_IDS
from counterpoint.train.model.load import LoadedModel
from counterpoint.train.sampling.sample import SeededNoise, inference


def stream(
    loaded: LoadedModel,
    prompt: Sequence[int],
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    stop_ids: Sequence[int] = STOP_IDS,
) -> Iterator[int]:
    """Real ids up to and with the stop token: those that `Sampler` draws for this one prompt with this seed."""
    if not len(prompt):
        raise ModelError("prompt: it is empty: give at least one token")
    model, mapping = loaded.model, loaded.vocabulary_map
    device = next(model.parameters()).device
    stop_rows = set(mapping.rows(list(stop_ids)).tolist())
    noise = SeededNoise([seed], temperature, device) if temperature > 0 else None
    rows_BS = torch.from_numpy(mapping.rows(list(prompt)))[None].to(device)
    cache = None
    for _ in range(max_new_tokens):
        # Entered for each token: between two of them the caller runs, with gradients and a random state of its own.
        with inference(model):
            output = model(input_ids=rows_BS, past_key_values=cache, use_cache=True, logits_to_keep=1)
            scores_BV = output.logits[:, -1]
            row = int((scores_BV if noise is None else noise.on(noise.processed(scores_BV), [0])).argmax())
        cache = output.past_key_values
        yield int(mapping.ids([row])[0])
        if row in stop_rows:
            return
        rows_BS = torch.tensor([[row]], device=device)
