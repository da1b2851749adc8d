"""Counterpoint in inspect_ai (extra `inspect`): a checkpoint as a model, and the strict check as scorers.

    inspect eval task.py --model counterpoint/runs/quickstart-... -M effort=high
    inspect eval task.py --model counterpoint/openai/gpt-oss-20b --model-base-url http://127.0.0.1:8000/v1

Token ids in, token ids out: inspect's own Hugging Face provider decodes with special tokens skipped and so cannot see
channels. Registered by the entry point `counterpoint` of the group `inspect_ai`.
"""

from __future__ import annotations

import hashlib
import threading
import time
from array import array
from collections import Counter
from logging import getLogger
from typing import Any, NamedTuple

import anyio
from inspect_ai.model import ChatMessage, GenerateConfig, ModelAPI, ModelCall, ModelOutput, modelapi
from inspect_ai.scorer import Score, Scorer, Target, accuracy, mean, scorer, stderr
from inspect_ai.solver import TaskState
from inspect_ai.tool import ToolChoice, ToolInfo

from counterpoint.configs.schema import ServerSettings
from counterpoint.data.conversation import Effort
from counterpoint.data.harmony.completion import Completion, parse_completion
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.vocabulary import Vocabulary, load_vocabulary
from counterpoint.train.evals.inspect_messages import METADATA, conversation_of, effort_of, output_of
from counterpoint.train.sampling.engines import Engine
from counterpoint.train.sampling.request_batches import Batches, Request
from counterpoint.train.sampling.sample import Sampler, sample_seed
from counterpoint.train.scoring.scorers import Reference, Scorers

logger = getLogger(__name__)
MAX_TOKENS = 4096
_IGNORED = ("top_p", "top_k", "stop_seqs", "frequency_penalty", "presence_penalty", "logit_bias", "logprobs")


class _Loaded(NamedTuple):
    vocabulary: Vocabulary
    renderer: Renderer
    batches: Batches


class CounterpointAPI(ModelAPI):
    """A checkpoint (`counterpoint/PLACE`, whatever `counterpoint sample` takes), or a server's model by `base_url`.

    Model arguments (-M): effort (of requests that name none), batch, device, and engine, for one of your own.
    Sampling is at temperature 1 unless the request says otherwise; with a seed, or without, the n-th request for one
    prompt always gets the same sample.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008
        effort: Effort = "medium",
        batch: int = 32,
        device: str = "auto",
        engine: Engine | None = None,
        **model_args: Any,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config)
        if model_args:
            raise TypeError(f"-M {next(iter(model_args))}: take effort, batch, device")
        self.effort: Effort = effort
        self.batch = batch
        self._device, self._engine = device, engine
        if engine is None and base_url is not None:
            from counterpoint.train.sampling.pool import ServerPool

            self._engine = ServerPool.connected(ServerSettings(url=(base_url,), model=model_name, parallel=batch))
        elif engine is None:
            from counterpoint.train.checkpoints.find import find_checkpoint

            self._found = find_checkpoint(model_name)
        self._loading = threading.Lock()
        self._loaded: _Loaded | None = None
        self.limiter = anyio.CapacityLimiter(batch)
        self.asked: Counter[str] = Counter()

    def loaded(self) -> _Loaded:
        """The checkpoint in memory, from its first request on: inspect makes providers that it asks for nothing but
        their names, each of which would hold another copy."""
        with self._loading:
            if self._loaded is None:
                self._loaded = self._load()
            return self._loaded

    def _load(self) -> _Loaded:
        if self._engine is not None:
            vocabulary = load_vocabulary()
            return _Loaded(vocabulary, Renderer(vocabulary), Batches(self._engine, self.batch))
        from counterpoint.train.checkpoints.find import open_checkpoint
        from counterpoint.train.model.load import device_of

        loaded = open_checkpoint(self._found, device_of(self._device))
        settings = self._found.run.data if self._found.run is not None else None
        batches = Batches(Sampler(loaded, batch_rows=self.batch), self.batch)
        return _Loaded(loaded.vocabulary, Renderer(loaded.vocabulary, settings), batches)

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> tuple[ModelOutput, ModelCall]:
        started = time.perf_counter()
        for name in _IGNORED:
            if getattr(config, name, None):
                logger.warning("counterpoint does not take `%s`: it was ignored", name)
        effort = effort_of(config, self.effort)
        vocabulary, renderer, batches = await anyio.to_thread.run_sync(self.loaded)
        conversation = conversation_of(
            input, tools if tool_choice != "none" else [], vocabulary, config.response_schema
        )
        prompt = renderer.prompt(conversation, effort)
        request = Request(
            prompt,
            config.max_tokens or MAX_TOKENS,
            1.0 if config.temperature is None else config.temperature,
            self._seed(prompt, config),
        )
        future = batches.put(request)
        sampled = await anyio.to_thread.run_sync(future.result, limiter=self.limiter, abandon_on_cancel=True)
        completion = parse_completion(
            sampled.ids,
            vocabulary,
            tools=conversation.tools,
            builtin_tools=conversation.builtin_tools,
            effort=effort,
            response_format=conversation.response_format,
            finish_reason=sampled.finish_reason,
        )
        text = vocabulary.decode(sampled.ids)
        details = {"effort": effort, "seed": request.seed, "finish_reason": sampled.finish_reason}
        output = output_of(completion, self.model_name, len(prompt), details, text, time.perf_counter() - started)
        asked = {
            "prompt": vocabulary.decode(prompt),
            "prompt_ids": prompt,
            "max_new_tokens": request.max_new_tokens,
        }
        return output, ModelCall.create(
            {**asked, "temperature": request.temperature, **details}, {"ids": sampled.ids, "text": text}
        )

    def _seed(self, prompt: list[int], config: GenerateConfig) -> int:
        """Epochs repeat a prompt: each repeat gets another seed, the same ones in every run."""
        key = f"{config.seed} {hashlib.sha256(array('i', prompt).tobytes()).hexdigest()}"
        self.asked[key] += 1
        return sample_seed(config.seed or 0, key, self.asked[key])

    def max_tokens(self) -> int | None:
        return MAX_TOKENS

    def max_connections(self) -> int:
        return self.batch

    def connection_key(self) -> str:
        return f"counterpoint {self.model_name}"

    def close(self) -> None:
        if self._loaded is not None:
            self._loaded.batches.close()


@modelapi(name="counterpoint")
def counterpoint() -> type[ModelAPI]:
    return CounterpointAPI


@scorer(metrics={"*": [mean(), stderr()]})
def channels() -> Scorer:
    """The strict check of every turn: shares of samples that are right on all channels, that think, that were not cut.

    The explanation names the violations.
    """

    async def score(state: TaskState, target: Target) -> Score:
        turns = _turns(state)
        codes = [violation["code"] for turn in turns for violation in turn["violations"]]
        value = {
            "correct": float(bool(turns) and not codes),
            "with_analysis": float(bool(turns) and all(turn["tokens"]["analysis"] > 0 for turn in turns)),
            "finished": float(bool(turns) and all(turn["stop"] in ("return", "call") for turn in turns)),
        }
        named = ", ".join(f"{code} x{count}" for code, count in Counter(codes).most_common())
        return Score(value=value, explanation=named or ("no violation" if turns else "no turn of this model"))

    return score


@scorer(metrics=[accuracy(), stderr()])
def answer(kind: str = "number") -> Scorer:
    """The last turn's final against the target: `exact`, `number`, `math` or `choice` of counterpoint's scorers.

    Unlike inspect's own, nothing but a finished final counts.
    """
    scorers = Scorers()

    async def score(state: TaskState, target: Target) -> Score:
        turns = _turns(state)
        if not turns:
            return Score(value=0.0, explanation="no turn of this model")
        completion = _completion(turns[-1])
        found = scorers.score(kind, completion, Reference(answer=target.text))
        return Score(value=found.value, answer=completion.final, explanation=f"{found.outcome} {found.detail}".strip())

    return score


def _turns(state: TaskState) -> list[dict[str, Any]]:
    return [
        message.metadata[METADATA]
        for message in state.messages
        if message.role == "assistant" and message.metadata and METADATA in message.metadata
    ]


def _completion(turn: dict[str, Any]) -> Completion:
    return parse_completion(turn["ids"], load_vocabulary(), finish_reason=turn.get("finish_reason"))
