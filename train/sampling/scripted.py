"""An engine that samples what a script holds: for trying tools, rewards and recipes without a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from counterpoint.data.harmony.vocabulary import STOP_IDS, Vocabulary
from counterpoint.train.sampling.sample import Sampled
from counterpoint.train.sampling.truncation import Truncation

Script = Callable[[list[int], int], str | list[int]]


class ScriptedEngine:
    """Answers every prompt by `script(prompt ids, its seed)`: ids, or raw Harmony text with special tokens by name.

    An answer is cut at `max_new_tokens` and after its first stop token, as a model's would be. `asked` keeps the
    prompts of every call.
    """

    def __init__(self, vocabulary: Vocabulary, script: Script | Sequence[str]) -> None:
        self.vocabulary = vocabulary
        self.script = script if callable(script) else _in_turn(script)
        self.asked: list[list[list[int]]] = []

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int | Sequence[int] = 0,
        stop_ids: Sequence[int] = STOP_IDS,
    ) -> list[Sampled]:
        """As `Engine.sample`."""
        self.asked.append([list(prompt) for prompt in prompts])
        seeds = [seed + i for i in range(len(prompts))] if isinstance(seed, int) else seed
        return [
            self._cut(self.script(list(prompt), own), max_new_tokens, stop_ids)
            for prompt, own in zip(prompts, seeds, strict=True)
        ]

    def cut(self, truncation: Truncation) -> ScriptedEngine:
        """See `Cuttable`; a script has no distribution."""
        return self

    def _cut(self, answer: str | list[int], max_new_tokens: int, stop_ids: Sequence[int]) -> Sampled:
        ids = self.vocabulary.encode_with_specials(answer) if isinstance(answer, str) else list(answer)
        end = next((i for i, id_ in enumerate(ids) if id_ in stop_ids), None)
        if end is not None and end < max_new_tokens:
            return Sampled(ids[: end + 1], "stop")
        return Sampled(ids[:max_new_tokens], "length")


def _in_turn(answers: Sequence[str]) -> Script:
    """One answer after the other, over all prompts; the last one for ever."""
    left = list(answers)

    def script(prompt: list[int], seed: int) -> str:
        return left.pop(0) if len(left) > 1 else left[0]

    return script
