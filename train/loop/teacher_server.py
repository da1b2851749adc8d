"""A teacher behind a server: what it says of ids that were sampled, asked of vLLM's `/v1/completions` before a step."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from counterpoint.configs.errors import ConfigError, RunError
from counterpoint.configs.rl_section import TeacherServerSettings
from counterpoint.data.harmony.vocabulary import load_vocabulary
from counterpoint.train.sampling.chat_server import ChatServer
from counterpoint.train.sampling.server import KEY_VARIABLE

SETTING = "grpo.teacher.server"
PROBE = "<|start|>user<|message|>What is 6 times 7?<|end|><|start|>assistant<|channel|>final<|message|>42<|return|>"


class TeacherServer:
    """Log-probabilities at temperature 1. weight: of its rating."""

    def __init__(self, settings: TeacherServerSettings, weight: float, pause: float = 1.0) -> None:
        self.settings, self.weight = settings, weight
        self._server = ChatServer(
            settings.url, key=KEY_VARIABLE, setting=f"{SETTING}.model", model=settings.model,
            timeout=settings.timeout, retries=settings.retries, pause=pause,
        )  # fmt: skip

    def check(self) -> None:
        """RunError where no such server answers, ConfigError where its tokens are others than gpt-oss's."""
        vocabulary = load_vocabulary()
        ids = vocabulary.encode_with_specials(PROBE)
        for id_, told in zip(ids[1:], self._told(ids)[1:], strict=True):
            its = told.get("decoded_token")
            if isinstance(its, str) and its != vocabulary.decode([id_]):
                raise ConfigError(
                    f"{SETTING}: another vocabulary: token {id_} is {its!r} at {self.settings.url}, and "
                    f"{vocabulary.decode([id_])!r} in gpt-oss: serve a model with gpt-oss's tokens"
                )

    def rated(self, rows: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probabilities of all ids of each row but the first; equal rows are asked for once."""
        distinct = list({tuple(row): None for row in rows})
        with ThreadPoolExecutor(self.settings.parallel) as pool:
            futures = {row: pool.submit(self._scores, row) for row in distinct}
            try:
                return [futures[tuple(row)].result() for row in rows]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _scores(self, ids: Sequence[int]) -> list[float]:
        return [float(told["logprob"]) for told in self._told(ids)[1:]]

    def _told(self, ids: Sequence[int]) -> list[dict[str, Any]]:
        body = {"prompt": list(ids), "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
        answer = self._server.answer("completions", body)
        try:
            told = answer["choices"][0]["prompt_logprobs"]
            assert len(told) == len(ids)
            found = [{}, *(each[str(id_)] for id_, each in zip(ids[1:], told[1:], strict=True))]
            assert all(isinstance(each["logprob"], int | float) for each in found[1:])
        except (KeyError, IndexError, TypeError, AssertionError):
            raise RunError(
                f"{SETTING}: {self.settings.url} does not say how likely given tokens are (`prompt_logprobs`): "
                "it takes vLLM, or `counterpoint serve`"
            ) from None
        return found
