"""What a run does with its settings, seen without training: the probes of tests/unit/test_settings_act.py.

A probe takes a checked run, from a folder with its files, and gives something that compares. A user's mistake counts as
well: its text is then what the run does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from pydantic import BaseModel

from counterpoint.configs.data_section import RenderSettings
from counterpoint.configs.errors import CounterpointError
from counterpoint.configs.schema import DpoRun, EvaluateRun, GrpoRun, RunSettings, SftRun
from counterpoint.data.conversation import Tool
from counterpoint.data.dataset.build import build_training_rows
from counterpoint.data.dataset.pairs import build_pairs, build_rated
from counterpoint.data.harmony.completion import parse_completion
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.vocabulary import load_vocabulary
from counterpoint.data.user_code.loader import resolve
from counterpoint.data.user_code.worker import Answer, Worker
from counterpoint.train.evals import checkpoint_samples, hook
from counterpoint.train.evals.rollouts import RolloutPool, played
from counterpoint.train.evals.tasks import build_tasks
from counterpoint.train.loop import rl_arguments, training_arguments
from counterpoint.train.loop.quantized import Quantized
from counterpoint.train.run import tracking, world
from counterpoint.train.sampling.scripted import ScriptedEngine
from counterpoint.train.scoring.code_truths import CodeTests, ProgramCase
from counterpoint.train.scoring.rewards import Outcome, Rewards
from counterpoint.train.scoring.scorers import Reference, Scorers

Probe = Callable[[Any], Any]
N_ROWS = 40
WORLD_CALL = (
    "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.add "
    "<|constrain|>json<|message|>{}<|call|>"
)
FINAL = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>42<|return|>"


def told(probe: Probe, run: Any) -> Any:
    with _instead(Worker, call=_called_here):
        try:
            return probe(run)
        except CounterpointError as error:
            return Refusal(f"{type(error).__name__}: {error}")


class Refusal(str):
    """What a user is told when a run ends with a mistake of theirs."""


def _called_here(self: Worker, function: str, *args: Any, **kwargs: Any) -> Answer:
    """A user's function without a process for it: starting one each time takes longer than all probes."""
    try:
        return Answer(resolve(function)(*args, **kwargs))
    except Exception as error:
        return Answer(None, "raised", f"{type(error).__name__}: {error}")


def plainly(value: Any) -> Any:
    """Arguments of a call as text: settings and plain values by what they hold, anything else by its type."""
    if isinstance(value, RunSettings):
        return type(value).__name__  # a call that takes the whole run says nothing of one setting
    if isinstance(value, BaseModel):
        return f"{type(value).__name__}({value!r})"
    if isinstance(value, str | int | float | bool | Path | torch.device | None):
        return str(value)
    if isinstance(value, dict):
        return {str(key): plainly(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plainly(item) for item in value]
    if isinstance(value, Quantized):
        return vars(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plainly(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return type(value).__name__


# ---- training


def arguments(run: Any) -> Any:
    """Arguments of TRL's trainer, settings of our loop, steps, and rows of a step."""
    folder = Path("run")
    loop = training_arguments.loop_settings(run, folder)
    if isinstance(run, SftRun):
        made: Any = training_arguments.sft_arguments(run, folder, N_ROWS)
    elif isinstance(run, DpoRun):
        steps = rl_arguments.steps_of(run, N_ROWS, world.rows_per_step(run))
        made = rl_arguments.preference_arguments(run, folder, steps)
        loop = loop, preference_of(run.dpo), rl_arguments.pair_tokens(run)
    else:
        steps = rl_arguments.steps_of(run, N_ROWS, world.rows_per_step(run) // run.grpo.group)
        made = rl_arguments.grpo_arguments(run, folder, steps)
        loop = loop, rl_arguments.policy_settings(run, N_ROWS)
    return made.to_dict(), plainly(loop), world.rows_per_step(run)


def preference_of(dpo: Any) -> float:
    """The loss of two pairs, or of two completions."""
    from counterpoint.train.loop.preference_loss import Side, pair_loss, rated_loss

    reference, tokens = torch.tensor([-8.0, -5.0]), torch.tensor([3, 4])
    one, other = (Side(torch.tensor(policy), reference, tokens) for policy in ([-9.0, -4.0], [-7.0, -7.0]))
    wanted, drift = torch.tensor([True, False]), torch.tensor(0.5)
    return float(rated_loss(dpo, one, wanted, drift, 0.5) if dpo.rated else pair_loss(dpo, one, other, 0.5, 0.1))


def best(run: Any) -> Any:
    """Which of ten measured steps is kept, and which ends the run."""
    from counterpoint.train.loop.best import KeepBest

    state = SimpleNamespace(global_step=0, max_steps=99)
    trainer: Any = SimpleNamespace(measured={}, state=state, kept_step=None)
    control = SimpleNamespace(should_save=False, should_training_stop=False)
    found: Any = KeepBest(trainer, run.train, lambda line: None)
    for state.global_step in range(1, 10):
        trainer.measured |= {"channel_correct": 0.05 * state.global_step, "right_answers": 1 / state.global_step}
        found.after_step(None, state, control)
        if control.should_training_stop:
            break
    return found.best_step, found.best, found.ended, state.global_step


def model(run: Any) -> Any:
    """What trains on which implementation: of a loaded model, without a step."""
    from counterpoint.recipes.steps import load_trainable
    from counterpoint.train.adapters.attach import attachment_table
    from counterpoint.train.checkpoints.start import with_start

    torch.manual_seed(0)
    loaded = load_trainable(with_start(run))
    inner = loaded.model.get_base_model() if hasattr(loaded.model, "get_base_model") else loaded.model
    config, layer = inner.config, inner.model.layers[0]
    adapter = getattr(loaded.model, "peft_config", {}).get("default")
    return (
        attachment_table(loaded.model).text(), loaded.source, str(next(inner.parameters()).dtype),
        config._attn_implementation, config._experts_implementation, layer.input_layernorm.forward.__qualname__,
        adapter and (adapter.lora_dropout, adapter.use_dora, adapter.use_rslora),
        float(inner.lm_head.weight.sum()),
        sum(float(p.detach().abs().sum()) for name, p in loaded.model.named_parameters() if ".lora_B." in name),
    )  # fmt: skip


def loads(run: Any) -> Any:
    """The calls by which recipes that do not train load their model (of `grpo` its teacher)."""
    calls: list[Any] = []

    def load(settings: Any, device: Any = "cpu") -> Any:
        calls.append(plainly([settings, device]))
        raise _ReachedError

    if isinstance(run, EvaluateRun):
        from counterpoint.recipes.commands.evaluate import as_asked
        from counterpoint.train.checkpoints import find
        from counterpoint.train.checkpoints.find import find_checkpoint, open_checkpoint

        chosen = run.model
        name = run.checkpoint or chosen.adapter
        own = chosen if name and "name" in chosen.model_fields_set else None
        found = as_asked(find_checkpoint(name or chosen.name, own), chosen)
        calls.append(str(found.adapter))
        with _instead(find, load_model=load), contextlib.suppress(_ReachedError):
            open_checkpoint(found)
    elif isinstance(run, GrpoRun):
        from counterpoint.train.loop import teacher

        assert run.grpo.teacher is not None
        with _instead(teacher, load_model=load), contextlib.suppress(_ReachedError):
            teacher.load_teacher(run.grpo.teacher, torch.device("cpu"))
    return calls


class _ReachedError(Exception):
    pass


@contextlib.contextmanager
def _instead(module: Any, **replaced: Any) -> Iterator[None]:
    before = {name: getattr(module, name) for name in replaced}
    for name, value in replaced.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


def calls(run: Any) -> Any:
    """What the recipe calls, with what: everything heavy in it is replaced by something that notes its arguments."""
    name = run.recipe
    module: ModuleType = importlib.import_module(f"counterpoint.recipes.{name}")
    heavy = {
        "grpo": "read_sets training_items held_out_items check_engine steps_of load_prompts prepare fingerprint Sampler following_engine make_pipeline "
        "EpisodeLimits open_environments grpo_arguments policy_settings loop_settings Toolkit Rewards Rollouts make_trainer train_to_end load_teacher TeacherServer RewardTrainer AttachmentProof",
        "distill": "RunFolder choose_run_folder finished fingerprint load_model put_start use_implementations Sampler "
        "Scorers distil row_of state_of what_to_resume write_result versions acceptance",
    }[name].split()
    noted: list[Any] = []
    question = SimpleNamespace(number=0, prompt=SimpleNamespace(id="0"))
    found = SimpleNamespace(question=question, completion=True, samples=1)
    Path("run").mkdir(exist_ok=True)
    replaced = {name: _Noted(name, noted) for name in heavy if hasattr(module, name)}
    if name == "grpo":
        del replaced["make_trainer"]
        replaced["open_session"] = _Noted("open_session", noted)
        replaced["held_out_items"] = lambda *a, **k: {}
    else:
        replaced["finished"] = lambda *a, **k: {}
        replaced["distil"] = lambda *a, **k: noted.append(("distil", plainly(a), plainly(k))) or iter([found])
        replaced["row_of"] = lambda done, keep_answer: noted.append(("row_of", keep_answer)) or {}
        replaced["acceptance"] = lambda done: ""
        replaced["write_result"] = lambda path: path
    with contextlib.ExitStack() as stack, contextlib.suppress(CounterpointError):
        stack.enter_context(_instead(module, **replaced))
        if name == "grpo":
            parts = importlib.import_module("counterpoint.recipes.grpo_parts")
            made = ["EpisodeLimits", "open_environments", "Toolkit", "Rewards", "Rollouts"]
            stack.enter_context(_instead(parts, **{each: _Noted(each, noted) for each in made}))
        module.run(run)
    return noted


class _Noted:
    """Callable, context manager and value in one; `noted` gets every call."""

    def __init__(self, name: str, noted: list[Any]) -> None:
        self.name, self.noted = name, noted

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.noted.append((self.name, plainly(args), plainly(kwargs)))
        return _Noted(self.name, self.noted)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: Any) -> None: ...

    def __getattr__(self, name: str) -> Any:
        if name == "path":
            return Path("run")
        if name in ("notes", "tools"):
            return ()
        if name in ("folder", "checkpoint"):
            return None
        return _Noted(f"{self.name}.{name}", self.noted)

    def __floordiv__(self, other: int) -> int:
        return 1

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __truediv__(self, other: str) -> Path:
        return Path("run") / other


# ---- data


def data(run: Any) -> Any:
    """Ids, weights and report of the training data."""
    return _rows(run, run.data.train)


def held_out(run: Any) -> Any:
    """The same of every set of held-out data."""
    if isinstance(run, GrpoRun):
        return _rows(run, run.data.valid_tasks)
    return {name: _rows(run, sources) for name, sources in run.data.valid_sets.items()}


def _rows(run: Any, sources: Any) -> Any:
    vocabulary = load_vocabulary()
    quarantine = Path("bad.jsonl")
    quarantine.unlink(missing_ok=True)
    if isinstance(run, SftRun):
        found = build_training_rows(sources, run.data, vocabulary, quarantine=quarantine)
        return found.fingerprint, found.lines(), len(found.rows), sorted(found.tools)
    if isinstance(run, DpoRun):
        build: Any = build_rated if run.dpo.rated else build_pairs
        pairs = build(sources, run.data, run.dpo, vocabulary, seed=run.seed, quarantine=quarantine)
        return pairs.fingerprint, pairs.lines()
    renderer = Renderer(vocabulary, run.data)
    if isinstance(run, GrpoRun):
        from counterpoint.recipes.grpo_prompts import items_of, read_prompts

        items = items_of(read_prompts(sources, run.data, renderer), renderer, run.grpo.efforts)
        return [
            (item.prompt.id, item.effort, item.prompt.task, item.prompt.scorer, item.prompt.reference.answer,
             renderer.prompt(item.prompt.conversation, item.effort)) for item in items
        ]  # fmt: skip
    from counterpoint.recipes.distill import read_questions

    questions = read_questions(run, renderer)
    return [(q.number, q.answer, renderer.prompt(q.prompt.conversation, q.effort)) for q in questions]


# ---- evaluation, rewards, tracking


def sampling(run: Any) -> Any:
    """Everything that the hook hands to the sampler."""
    from counterpoint.train.scoring.prompts import load_prompts

    calls: list[Any] = []

    class Sampler:
        def __init__(self, loaded: Any, batch_rows: int, stops: Any, truncation: Any) -> None:
            calls.append((batch_rows, truncation))

        def sample(self, ids: Any, *rest: Any) -> list[Any]:
            calls.append(([list(each) for each in ids], rest))
            return [None] * len(ids)

    prompts = load_prompts(run.eval.prompts)
    with _instead(hook, Sampler=Sampler):
        loaded: Any = None
        engine: Any = hook.in_memory(loaded, run.eval)
        hook.sample_all(engine, Renderer(load_vocabulary()), hook.planned(prompts, run.eval), run.eval, run.seed)
    return calls


def due(run: Any) -> Any:
    """At which of ten steps the hook measures what, and what a channel-correct rate of 0.5 leads to."""
    seen: list[Any] = []
    loaded: Any = SimpleNamespace(model=_a_peft_model())
    control = SimpleNamespace(should_save=False, should_training_stop=False)
    at: Any = hook.ChannelEval(loaded, None, [], run.eval, None, warn=seen.append)  # type: ignore[arg-type]
    at.measure = lambda step, who, control=None: seen.append((step, who))
    with _instead(hook, is_fresh=lambda model: False):
        at.on_train_begin(None, SimpleNamespace(global_step=0), control)
    for step in range(1, 11):
        at.after_step(None, SimpleNamespace(global_step=step, max_steps=10), control)
    at._thresholds(SimpleNamespace(step=3, summary=SimpleNamespace(correct=SimpleNamespace(share=0.5))), control)
    return seen, vars(control)


def _a_peft_model() -> Any:
    from peft import PeftModel

    return PeftModel.__new__(PeftModel)


def plan(run: Any) -> Any:
    """The draws of an evaluation: ids, seeds and limits; and what its engine is made from."""
    tasks = build_tasks(run.eval)
    draws = checkpoint_samples.plan(tasks, Renderer(load_vocabulary()), run.seed)
    return [
        (d.key, d.seed, list(d.prompt_ids), d.prompt.scorer, d.prompt.reference.answer, d.task.max_new_tokens,
         d.task.temperature, d.task.truncation) for d in draws
    ]  # fmt: skip


def worlds(run: Any) -> Any:
    """Fixed rollouts in the environments of an evaluation: what is asked, said, earned, and in which processes."""
    vocabulary = load_vocabulary()
    renderer = Renderer(vocabulary, RenderSettings(serving="sampled"))
    (call,) = vocabulary.encode_with_specials("<|call|>")
    engine = ScriptedEngine(vocabulary, lambda prompt, _: WORLD_CALL if prompt.count(call) < 2 else FINAL)
    draws = checkpoint_samples.plan(build_tasks(run.eval), renderer, run.seed)
    with RolloutPool() as pool, Scorers() as judges:
        seen = played(draws, engine, renderer, pool, judges)
    processes = [{sample.more["rewards"].pop(name, None) for sample in seen} for name in ("process", "parent")]
    return [
        [(s.prompt.task, s.prompt.id, s.effort, s.sample, s.score, s.more) for s in seen],
        [(draw.task.temperature, draw.task.truncation) for draw in draws],
        [each.prompt.reference.prompt for each in seen],
        [len(found) for found in processes],
    ]


def tasks(run: Any) -> Any:
    """What is rolled out in a hook or an evaluation, and how; what comes of it is seen in test_rollouts.py."""
    from counterpoint.recipes.steps import evaluation_tasks
    from counterpoint.train.evals import rollouts, task_rollouts
    from counterpoint.train.scoring.prompts import load_prompts

    class Kit:
        notes = ()

        def __init__(self, given: Any) -> None:
            self.identity = {"given": repr(given)}

        @classmethod
        def of(cls, given: Any) -> Any:
            return cls(given)

        def declared(self, conversation: Any) -> Any:
            return conversation

        def close(self) -> None: ...

    with _instead(task_rollouts, Toolkit=Kit), _instead(rollouts, Toolkit=Kit):
        if isinstance(run, EvaluateRun):
            return [dataclasses.astuple(task) for task in build_tasks(run.eval)]
        rolled, built = evaluation_tasks(run, load_prompts(run.eval.prompts))
    return [dataclasses.astuple(task) for task in built], rolled and dataclasses.astuple(rolled)


def sides(run: Any) -> Any:
    """Whose samples `evaluate` draws, of an adapter."""
    from counterpoint.recipes.commands.evaluate import _plans
    from counterpoint.train.checkpoints.find import find_checkpoint

    return sorted(_plans(run, find_checkpoint("other_adapter"), None, Path("evaluated")))


def engine(run: Any) -> Any:
    """What the engine of an evaluation is made from."""
    from counterpoint.train.sampling import engines, pool, vllm_engine

    noted: list[Any] = []
    note = _Noted("engine", noted)
    kind = SimpleNamespace(connected=note, started=note)
    made = SimpleNamespace(name="m", revision=None, dtype="auto", adapter=None)
    with _instead(pool, ServerPool=kind), _instead(vllm_engine, VllmEngine=kind), _instead(engines, Sampler=note):
        loaded: Any = object()
        model: Any = made
        engines.make_engine(run.eval, loaded=loaded, model=model)
    return noted


def scorers(run: Any) -> Any:
    from counterpoint.train.evals import tasks

    noted: list[Any] = []
    with _instead(
        tasks, Scorers=_Noted("Scorers", noted), Guard=_Noted("Guard", noted), _check_scorers=lambda *a: None
    ):
        build_tasks(run.eval)
    return noted


def results(run: Any) -> Any:
    """The folder that `evaluate` writes."""
    from counterpoint.recipes.commands.evaluate import DEFAULT, _folder
    from counterpoint.train.checkpoints.find import find_checkpoint

    return str(_folder(find_checkpoint("tiny"), run, DEFAULT))


def opened(run: Any) -> Any:
    """The device on which `evaluate` opens a checkpoint."""
    noted: list[Any] = []
    found: Any = None
    with _instead(checkpoint_samples, open_checkpoint=_Noted("open", noted), make_engine=lambda *a, **k: None):
        made = checkpoint_samples.Planned(run, SimpleNamespace(base=None, adapter=None), Path(), found, [], [], found)  # type: ignore[arg-type]
        made._engine()
    return noted


def session(run: Any) -> Any:
    """What a run sets before anything else."""
    from counterpoint.train.run.session import open_session

    noted: list[Any] = []
    with _instead(torch, set_num_threads=noted.append), open_session(run):
        return noted


def ahead(run: Any) -> Any:
    """Which groups may be sampled after which step, and which of those that are done a step takes."""
    from counterpoint.recipes.grpo_parts import group_order

    share, order = group_order(run, N_ROWS, 9)
    admitted = [order.published(version) for version in range(3)]
    order.finished = set(range(2 * share.units)) - {1}
    return admitted, order.take()


def following(run: Any) -> Any:
    """What the engine of rollouts is made from."""
    from counterpoint.train.sampling import weight_sync

    noted: list[Any] = []
    kind = SimpleNamespace(started=_Noted("vllm", noted))
    with _instead(weight_sync, VllmEngine=kind, FollowingPool=_Noted("server", noted)):
        made = weight_sync.following_engine(run, Path("engine"))
        if getattr(made, "start", None) is not None:
            made.start(Path("merged"))
    return noted


TEXTS = {
    "right": "<|channel|>analysis<|message|>Let me add them now.<|end|><|start|>assistant<|channel|>final<|message|>42<|return|>",
    "words": "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Ответ: forty-two<|return|>",
    "json": '<|channel|>analysis<|message|>Ум.<|end|><|start|>assistant<|channel|>final<|message|>{"a": 1}<|return|>',
    "near": "<|channel|>analysis<|message|>Let me add.<|end|><|start|>assistant<|channel|>final<|message|>It is 42.<|return|>",
    "mixed": "<|channel|>final<|message|>It is certainly forty-one, as anybody can see at once. "
    "Это видно каждому сразу, и спорить тут не о чём.<|return|>",
    "call": '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"n": 1}<|call|>',
}

TEXTS["code"] = "<|channel|>final<|message|>```python\nprint(3)\n```<|return|>"
PROGRAMS = CodeTests((ProgramCase("", "3"), ProgramCase("", "4")))


def evaluated_rewards(run: Any) -> Any:
    return _earned(run.eval.rewards or ())


def rewards(run: Any) -> Any:
    """What fixed rollouts earn, by name, and the weights."""
    return _earned(run.rewards)


def _earned(settings: Any) -> Any:
    vocabulary = load_vocabulary()
    with Rewards(settings) as made:
        found = {
            name: _comparable(made.score(
                Outcome(
                    parse_completion(vocabulary.encode_with_specials(text), vocabulary, tools=(Tool("f"),)),
                    (), Reference(answer="42", prompt="What is 40 + 2?", schema={"type": "object"}, tests=PROGRAMS),
                )
            ))
            for name, text in TEXTS.items()
        }  # fmt: skip
        return made.names, made.weights, found


def _comparable(values: list[float]) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values]


def trackers(run: Any) -> Any:
    """Which trackers start, and what wandb and mlflow are given."""
    noted: list[Any] = []
    fake: Any = ModuleType("wandb")
    fake.Settings, fake.init = (lambda **given: None), _Noted("wandb.init", noted)
    client: Any = ModuleType("mlflow")
    client.MlflowClient = _Noted("mlflow", noted)
    entities: Any = ModuleType("mlflow.entities")
    entities.Param = lambda name, value: None

    class Started:
        def __init__(self, name: str, start: Any, *rest: Any) -> None:
            noted.append(name)
            if name != "tensorboard":
                with contextlib.suppress(TypeError), start():
                    pass

    modules = {"wandb": fake, "mlflow": client, "mlflow.entities": entities}
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    folder = Path("tracked")
    folder.mkdir(exist_ok=True)
    (folder / "mlflow_run.txt").unlink(missing_ok=True)
    try:
        with _instead(tracking, GuardedTracker=Started):
            tracking.start_tracker(run.tracking, folder, {}, noted.append)
    finally:
        for name, module in before.items():
            sys.modules.pop(name) if module is None else sys.modules.update({name: module})
    return noted


def launched(run: Any) -> Any:
    """The launcher's command and environment."""
    from counterpoint.recipes.commands.launch import launch_command, launch_environment

    where = {"NODE_RANK": "0", "MASTER_ADDR": "first"}
    return launch_command(run.launch, [], where), launch_environment(run.launch, "cuda", where)


def beside(run: Any) -> Any:
    """The commands of the servers that are started, their GPUs, and where they are asked."""
    from counterpoint.recipes.commands.train_servers import devices_of, server_command

    serve = run.launch.serve
    commands = [server_command(run, serve.command, serve.port + number) for number in range(serve.servers)]
    return commands, devices_of(run, {}, lambda: 8), serve.urls


def folder(run: Any) -> Any:
    """The run folder that would be made."""
    from counterpoint.train.run.folder import choose_run_folder

    path = choose_run_folder(run, None, False)[0]
    return str(path.parent), path.name.rpartition("-")[0].rpartition("-")[0]
