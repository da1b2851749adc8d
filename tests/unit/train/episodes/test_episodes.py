"""Episodes keep sampled ids verbatim, mask what tools wrote, and end whatever a model or a tool does."""

from __future__ import annotations

import shlex
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.configs.data_section import RenderSettings, ServedSettings
from counterpoint.configs.errors import RunError
from counterpoint.data.conversation import Conversation, Message
from counterpoint.data.formats.convert import convert
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.vocabulary import STOP_IDS, load_vocabulary
from counterpoint.train.episodes.episodes import EpisodeLimits, run_episodes
from counterpoint.train.episodes.said import continued
from counterpoint.train.episodes.toolkit import Toolkit
from counterpoint.train.model.tiny import random_tiny
from counterpoint.train.sampling.rollout import Episode
from counterpoint.train.sampling.sample import Sampled, Sampler, sample_seed
from counterpoint.train.sampling.scripted import ScriptedEngine

VOCABULARY = load_vocabulary()
SAMPLED = RenderSettings(serving="sampled")
RENDERER = Renderer(VOCABULARY, SAMPLED)
FUNCTIONS = '''
import signal, time

def multiply(a: int, b: int) -> int:
    """Multiplies."""
    return a * b

def raises() -> str:
    """Raises."""
    raise KeyError("no")

def hangs() -> str:
    """Hangs."""
    signal.setitimer(signal.ITIMER_REAL, 0.2)  # its limit comes soon
    time.sleep(60)

def floods() -> str:
    """Floods."""
    return "x" * 100_000
'''
THINK = "<|channel|>analysis<|message|>Call it.<|end|><|start|>assistant"
MULTIPLY = '{"a": 6, "b": 7}'
IN_CHANNEL = f"{THINK}<|channel|>commentary to=functions.multiply <|constrain|>json<|message|>{MULTIPLY}<|call|>"
IN_ROLE = f"{THINK} to=functions.multiply<|channel|>commentary <|constrain|>json<|message|>{MULTIPLY}<|call|>"
ANSWER = "<|channel|>final<|message|>42<|return|>"


@pytest.fixture(scope="module")
def toolkit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Toolkit]:
    path = tmp_path_factory.mktemp("tools") / "functions.py"
    path.write_text(FUNCTIONS)
    names = ("multiply", "raises", "hangs", "floods")
    with Toolkit([f"{path}:{name}" for name in names], seconds=15.0) as made:
        yield made


def question(toolkit: Toolkit | None = None, text: str = "What is 6 times 7?") -> Conversation:
    conversation = Conversation(messages=(Message("user", text),))
    return toolkit.declared(conversation) if toolkit is not None else conversation


def play(toolkit: Toolkit, *answers: str, limits: EpisodeLimits | None = None) -> tuple[Episode, ScriptedEngine]:
    engine = ScriptedEngine(VOCABULARY, answers)
    prompt = question(toolkit)
    (episode,) = run_episodes([prompt], RENDERER, engine, limits=limits, toolbox=toolkit.toolbox)
    return episode, engine


@pytest.mark.parametrize("said", [IN_CHANNEL, IN_ROLE], ids=["channel", "role"])
def test_sampled_ids_are_kept_and_the_result_is_masked(toolkit: Toolkit, said: str) -> None:
    episode, engine = play(toolkit, said, ANSWER)
    call, answer = VOCABULARY.encode_with_specials(said), VOCABULARY.encode_with_specials(ANSWER)
    result = VOCABULARY.encode_with_specials(
        "<|start|>functions.multiply to=assistant<|channel|>commentary<|message|>42<|end|><|start|>assistant"
    )
    assert episode.completion_ids == [*call, *result, *answer]
    assert episode.env_mask == [1] * len(call) + [0] * len(result) + [1] * len(answer)
    assert episode.prompt_ids == RENDERER.prompt(question(toolkit))
    assert engine.asked == [[episode.prompt_ids], [[*episode.prompt_ids, *call, *result]]]
    assert (episode.stop, episode.called[0].result.content, episode.completion().final) == ("return", "42", "42")
    assert episode.completion().violations == ()
    assert episode.completion().analysis == "Call it."


@pytest.mark.parametrize(
    ("name", "arguments", "fault", "said"),
    [
        ("raises", "{}", "raised", "error: "),
        ("hangs", "{}", "hung", "error: "),
        ("floods", "{}", None, "xxxx"),
        ("multiply", "{nonsense", "bad_arguments", "error: the arguments are not a JSON object"),
        ("multiply", '{"a": "six"}', "bad_arguments", "error: ValidationError"),
        ("missing", "{}", "unknown_tool", "error: there is no tool `functions.missing`"),
    ],
)
def test_whatever_a_tool_does_the_model_reads_a_result_and_goes_on(
    toolkit: Toolkit, name: str, arguments: str, fault: str | None, said: str
) -> None:
    call = f"{THINK}<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{arguments}<|call|>"
    episode, _ = play(toolkit, call, ANSWER)
    assert (episode.called[0].result.fault, episode.stop) == (fault, "return")
    assert episode.called[0].result.content.startswith(said)
    assert len(episode.called[0].result.content) < 8_100


def test_an_episode_ends_at_its_limits(toolkit: Toolkit) -> None:
    episode, engine = play(toolkit, IN_CHANNEL, limits=EpisodeLimits(calls=2))
    assert (episode.stop, len(episode.called), len(engine.asked)) == ("calls", 2, 3)
    call = len(VOCABULARY.encode_with_specials(IN_CHANNEL))
    episode, _ = play(toolkit, IN_CHANNEL, limits=EpisodeLimits(completion_tokens=call + 5))
    assert (episode.stop, len(episode.completion_ids)) == ("length", call), "the result no longer fits"
    episode, _ = play(toolkit, IN_CHANNEL, limits=EpisodeLimits(action_tokens=4))
    assert (episode.stop, len(episode.completion_ids), episode.completion().stop) == ("length", 4, "length")


@pytest.mark.parametrize(
    ("said", "stop"),
    [
        ("<|channel|>commentary<|message|>hello<|call|>", "malformed"),
        ("hello<|call|>", "malformed"),
        ("<|call|>", "malformed"),
        ("<|return|>", "return"),
        ("", "malformed"),
    ],
)
def test_nonsense_ends_an_episode(toolkit: Toolkit, said: str, stop: str) -> None:
    episode, _ = play(toolkit, said)
    assert (episode.stop, episode.called) == (stop, ())
    assert not episode.completion().ok


class Telling(ScriptedEngine):
    """Says -0.5 of each id, and nothing of a stop token."""

    def sample(self, *args: Any, **kwargs: Any) -> list[Sampled]:
        found = super().sample(*args, **kwargs)
        return [replace(s, logprobs=[*[-0.5] * (len(s.ids) - 1), None]) for s in found]


def test_log_probabilities_stand_beside_what_was_sampled(toolkit: Toolkit) -> None:
    engine = Telling(VOCABULARY, [IN_CHANNEL, ANSWER])
    (episode,) = run_episodes([toolkit.declared(question())], RENDERER, engine, toolbox=toolkit.toolbox)
    assert episode.logprobs is not None
    by_token = list(zip(episode.completion_ids, episode.env_mask, episode.logprobs, strict=True))
    assert {logp for _, sampled, logp in by_token if not sampled} == {0.0}
    assert {logp for id_, sampled, logp in by_token if sampled and id_ not in STOP_IDS} == {-0.5}
    assert [logp for id_, sampled, logp in by_token if sampled and id_ in STOP_IDS] == [None, None]
    short = EpisodeLimits(completion_tokens=len(episode.completion_ids) - 3)
    (cut,) = run_episodes(
        [toolkit.declared(question())],
        RENDERER,
        Telling(VOCABULARY, [IN_CHANNEL, ANSWER]),
        limits=short,
        toolbox=toolkit.toolbox,
    )
    assert cut.logprobs is not None
    assert cut.logprobs[:-1] == episode.logprobs[:-4]
    silent = run_episodes([question()], RENDERER, ScriptedEngine(VOCABULARY, [ANSWER]))
    assert silent[0].logprobs is None


def test_without_tools_a_call_ends_the_episode() -> None:
    (episode,) = run_episodes([question()], RENDERER, ScriptedEngine(VOCABULARY, [IN_CHANNEL]))
    assert (episode.stop, episode.called) == ("calls", ())
    assert "unknown_tool" in episode.completion().codes


def test_a_final_before_the_last_action_is_a_second_final(toolkit: Toolkit) -> None:
    early = IN_CHANNEL.replace(THINK, "<|channel|>final<|message|>42<|end|><|start|>assistant")
    episode, _ = play(toolkit, early, ANSWER)
    assert "second_final" in episode.completion().codes


def test_the_next_user_message_drops_earlier_analysis(toolkit: Toolkit) -> None:
    prompt = question(toolkit)
    engine = ScriptedEngine(VOCABULARY, [IN_CHANNEL, ANSWER])
    (episode,) = run_episodes([prompt], RENDERER, engine, toolbox=toolkit.toolbox)
    again = continued(prompt, episode, "And 6 times 8?")
    assert [m.channel or m.role for m in again.messages] == [
        "user", "analysis", "commentary", "commentary", "final", "user",
    ]  # fmt: skip
    text = VOCABULARY.decode(RENDERER.prompt(again))
    assert "Call it." not in text
    assert text.endswith(
        " to=functions.multiply<|channel|>commentary <|constrain|>json<|message|>" + MULTIPLY + "<|call|>"
        "<|start|>functions.multiply to=assistant<|channel|>commentary<|message|>42<|end|>"
        "<|start|>assistant<|channel|>final<|message|>42<|end|>"
        "<|start|>user<|message|>And 6 times 8?<|end|><|start|>assistant"
    )


def test_what_the_user_says_next_begins_an_episode_of_its_own(toolkit: Toolkit) -> None:
    prompt, later = question(toolkit), ANSWER.replace("42", "48")
    engine = ScriptedEngine(VOCABULARY, [IN_CHANNEL, ANSWER, THINK + later])
    (episode,) = run_episodes(
        [prompt], RENDERER, engine, toolbox=toolkit.toolbox, efforts=["high"], follow_ups=[["And 6 times 8?"]]
    )
    (first,) = run_episodes(
        [prompt], RENDERER, ScriptedEngine(VOCABULARY, [IN_CHANNEL, ANSWER]), toolbox=toolkit.toolbox, efforts=["high"]
    )
    assert (episode.turn, episode.stop, episode.effort) == (1, "return", "high")
    assert episode.prompt_ids == RENDERER.prompt(continued(prompt, first, "And 6 times 8?"), "high")
    assert episode.prompt_ids == engine.asked[2][0]
    assert "Call it." not in VOCABULARY.decode(episode.prompt_ids)
    assert episode.completion_ids == VOCABULARY.encode_with_specials(THINK + later)
    assert episode.env_mask == [1] * len(episode.completion_ids)
    assert (episode.called, len(episode.actions), episode.completion().final) == ((), 1, "48")


@pytest.mark.parametrize(
    ("said", "stop"), [("hello<|call|>", "malformed"), ("<|return|>", "return"), ("", "malformed")]
)
def test_a_turn_without_a_final_is_the_last(said: str, stop: str) -> None:
    engine = ScriptedEngine(VOCABULARY, [said, ANSWER])
    (episode,) = run_episodes([question()], RENDERER, engine, follow_ups=[["And then?"]])
    assert (episode.turn, episode.stop, len(engine.asked)) == (0, stop, 1)


def test_each_python_session_is_an_episodes_own(tmp_path: Path) -> None:
    first = "<|channel|>analysis to=python<|message|>x = 41; print(x + 1)<|call|>"
    second = "<|channel|>analysis to=python<|message|>print('x' in globals())<|call|>"
    with Toolkit(python=True, seconds=30) as toolkit:
        prompts = [question(toolkit, "a"), question(toolkit, "b")]
        said = {"a": [first, second, ANSWER], "b": [second, ANSWER]}

        def script(ids: list[int], seed: int) -> str:
            text = VOCABULARY.decode(ids)
            return said["a" if "<|message|>a<|end|>" in text else "b"][text.count("<|call|>")]

        engine = ScriptedEngine(VOCABULARY, script)
        a, b = run_episodes(prompts, RENDERER, engine, toolbox=toolkit.toolbox)
    assert [called.result.content.strip() for called in a.called] == ["42", "True"]
    assert [called.result.content.strip() for called in b.called] == ["False"]
    assert VOCABULARY.decode(a.completion_ids).count("<|start|>python to=assistant<|channel|>analysis<|message|>") == 2


MARKUP = [*STOP_IDS, 200003, 200005, 200006, 200007, 200008, 35644, 17196, 12606, 815, 13]


@given(st.lists(st.sampled_from(MARKUP), max_size=20))
def test_any_ids_make_an_episode(ids: list[int]) -> None:
    (episode,) = run_episodes([question()], RENDERER, ScriptedEngine(VOCABULARY, lambda prompt, seed: ids))
    assert episode.completion_ids == ids[: next((i for i, id_ in enumerate(ids) if id_ in STOP_IDS), len(ids)) + 1]
    assert len(episode.env_mask) == len(episode.completion_ids)
    episode.completion()


def test_a_model_is_sampled_like_by_the_sampler_alone(toolkit: Toolkit) -> None:
    loaded = random_tiny(seed=3)
    renderer = Renderer(loaded.vocabulary, SAMPLED)
    prompts = [question(text=f"What is {n}?") for n in range(3)]
    limits = EpisodeLimits(action_tokens=12)
    seeds = [5, 6, 7]
    run = [run_episodes(prompts, renderer, Sampler(loaded), limits=limits, seed=seeds) for _ in range(2)]
    assert run[0] == run[1]
    swapped = run_episodes(prompts[::-1], renderer, Sampler(loaded), limits=limits, seed=seeds[::-1])
    assert swapped[::-1] == run[0]
    assert run_episodes(prompts, renderer, Sampler(loaded), limits=limits, seed=[8, 9, 10]) != run[0]


class EachAlone(ScriptedEngine):
    """Asked for each sample by itself. The samples of the first seed wait until the other rollouts have ended."""

    each_alone = True

    def __init__(self, script: Any, others: int = 0) -> None:
        super().__init__(VOCABULARY, script)
        self.ended, self.others = threading.Semaphore(0), others

    def sample(self, prompts: Any, max_new_tokens: int, temperature: float = 0, seed: Any = 0, **more: Any) -> Any:
        if seed == [sample_seed(1, 0)]:
            assert all(self.ended.acquire(timeout=20) for _ in range(self.others))
        return super().sample(prompts, max_new_tokens, temperature, seed, **more)


def test_a_slow_sample_of_a_server_holds_up_no_other_rollout(toolkit: Toolkit) -> None:
    def script(prompt: list[int], seed: int) -> str:
        called = "<|start|>functions.multiply" in VOCABULARY.decode(prompt)
        return ANSWER.replace("42", str(seed % 97)) if called else IN_CHANNEL

    engine = EachAlone(script, others=2)
    options: Any = {"toolbox": toolkit.toolbox, "seed": [1, 2, 3], "temperature": 1.0}
    prompts, after = [question(toolkit)] * 3, lambda place, _: place and engine.ended.release()
    episodes = run_episodes(prompts, RENDERER, engine, after=after, **options)
    assert {len(asked) for asked in engine.asked} == {1}
    assert episodes == run_episodes(prompts, RENDERER, ScriptedEngine(VOCABULARY, script), **options)


def test_a_server_that_fails_ends_the_run_with_its_own_error(toolkit: Toolkit) -> None:
    def script(prompt: list[int], seed: int) -> str:
        if seed == sample_seed(3, 0):
            raise RunError("http://there/v1: status 400")
        return IN_CHANNEL

    with pytest.raises(RunError, match="status 400"):
        run_episodes([question(toolkit)] * 3, RENDERER, EachAlone(script), toolbox=toolkit.toolbox, seed=[1, 2, 3])


MCP_SERVER = '''
from mcp.server import MCPServer

server = MCPServer("multiplier")

@server.tool()
def multiply(a: int, b: int) -> int:
    """Multiplies."""
    if b == 0:
        raise ValueError("nothing times")
    return a * b

server.run("stdio")
'''


def test_an_episode_calls_the_tool_of_an_mcp_server(tmp_path: Path) -> None:
    """Its tools are declared to the model, its result is appended and masked, its error is an answer like any other."""
    (tmp_path / "server.py").write_text(MCP_SERVER)
    command = shlex.join([sys.executable, str(tmp_path / "server.py")])
    failing = IN_CHANNEL.replace('"b": 7', '"b": 0')
    with Toolkit(mcp=[command], seconds=60.0) as toolkit:
        asked = question(toolkit)
        assert [tool.name for tool in asked.tools] == ["multiply"]
        engine = ScriptedEngine(VOCABULARY, [failing, IN_CHANNEL, ANSWER])
        (episode,) = run_episodes([asked], RENDERER, engine, toolbox=toolkit.toolbox)
    failed, called = episode.called
    assert failed.result.fault is not None
    assert "multiply" in failed.result.content
    assert (called.result.fault, called.result.content) == (None, "42")
    sampled = [i for i, own in zip(episode.completion_ids, episode.env_mask, strict=True) if own]
    assert sampled == VOCABULARY.encode_with_specials(failing + IN_CHANNEL + ANSWER)
    assert "<|start|>functions.multiply to=assistant<|channel|>commentary<|message|>42<|end|>" in VOCABULARY.decode(
        episode.completion_ids
    )
    assert episode.completion().final == "42"


@pytest.mark.parametrize("serving", ["vllm", "vllm_0_30", "transformers", "sglang", "llama_cpp"])
def test_a_server_s_form_gives_each_action_the_prompt_that_a_client_would_get(toolkit: Toolkit, serving: Any) -> None:
    """The client's messages, read from a chat row and rendered: another way to the same ids."""
    renderer = Renderer(VOCABULARY, RenderSettings(serving=serving))
    engine = ScriptedEngine(VOCABULARY, [IN_CHANNEL, ANSWER, "<|channel|>final<|message|>Done.<|return|>"])
    (episode,) = run_episodes(
        [question(toolkit)], renderer, engine, toolbox=toolkit.toolbox, follow_ups=[["Thanks."]], efforts=["low"]
    )
    call = {"id": "1", "type": "function", "function": {"name": "multiply", "arguments": MULTIPLY}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "What is 6 times 7?"},
        {"role": "assistant", "content": "", "reasoning_content": "Call it.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "42"},
        {"role": "assistant", "content": "42"},
        {"role": "user", "content": "Thanks."},
    ]
    prompts = []
    for n in (1, 3, 5):
        asked = convert({"messages": messages[:n]})
        assert isinstance(asked, Conversation)
        prompts.append(renderer.prompt(toolkit.declared(asked), "low"))
    assert engine.asked == [[prompt] for prompt in prompts]
    actions = [VOCABULARY.encode_with_specials(said) for said in (IN_CHANNEL, ANSWER)]
    learned = [*episode.earlier_rows, *episode.rows]
    assert [list(row.prompt_ids) for row in learned] == prompts
    assert [row.completion_ids for row in learned[:2]] == actions
    assert all(row.env_mask == [1] * len(row.completion_ids) for row in learned)
    assert (episode.turn, len(episode.rows)) == (1, 1)
    assert episode.completion().final == "Done."


def test_what_a_server_cannot_write_again_is_malformed(toolkit: Toolkit) -> None:
    """llama.cpp parses the arguments of a call; there are none to parse here, and the tool's answer finds no prompt."""
    renderer = Renderer(VOCABULARY, RenderSettings(serving="llama_cpp"))
    broken = f"{THINK}<|channel|>commentary to=functions.multiply <|constrain|>json<|message|>{{nonsense<|call|>"
    engine = ScriptedEngine(VOCABULARY, [broken, ANSWER])
    (episode,) = run_episodes([question(toolkit)], renderer, engine, toolbox=toolkit.toolbox)
    assert (episode.stop, len(episode.rows), len(engine.asked)) == ("malformed", 1, 1)


def test_what_clients_send_back_is_what_the_next_action_is_given(toolkit: Toolkit) -> None:
    served = ServedSettings(reasoning="lost", arguments="spaced")
    renderer = Renderer(VOCABULARY, RenderSettings(serving="vllm_responses", served=served))
    tight = IN_CHANNEL.replace(MULTIPLY, '{"a":6,"b":7}')
    engine = ScriptedEngine(VOCABULARY, [tight, ANSWER])
    run_episodes([question(toolkit)], renderer, engine, toolbox=toolkit.toolbox)
    given = VOCABULARY.decode(engine.asked[1][0])
    assert "Call it." not in given
    assert f"json<|message|>{MULTIPLY}<|call|>" in given
