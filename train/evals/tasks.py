"""The tasks of a suite, made from its settings: items with their truth, and how they are to be sampled.

Everything that can be wrong with a task is reported before anything is sampled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath

from counterpoint.configs.data_section import SourceSettings
from counterpoint.configs.errors import ConfigError, DataError
from counterpoint.configs.eval_section import (
    ArithmeticTask,
    EnvironmentTask,
    FileTask,
    ForeignTask,
    ProbesTask,
    ReadyTask,
    ReasoningGymTask,
    SuiteSettings,
    TaskSettings,
    TruncationSettings,
)
from counterpoint.data.conversation import Effort
from counterpoint.data.formats.tool_files import read_tool_names
from counterpoint.data.harmony.completion import parse_completion
from counterpoint.data.harmony.vocabulary import load_vocabulary
from counterpoint.data.user_code.loader import file_of
from counterpoint.data.user_code.worker import Guard
from counterpoint.train.evals.generators import ONLY_THE_ANSWER, arithmetic_items, gym_items
from counterpoint.train.evals.task_rollouts import (
    TaskRollout,
    Toolkits,
    check_rewards,
    check_taken,
    declared,
    rollout_of,
    with_follow_ups,
)
from counterpoint.train.foreign.bridge import listed_tasks
from counterpoint.train.sampling.truncation import Truncation
from counterpoint.train.scoring.environment_rows import load_rows, of_environment, row_prompt
from counterpoint.train.scoring.prompts import BUILT_IN, EvalPrompt, as_probes, clustered, load_prompts
from counterpoint.train.scoring.ready_tasks import ready_prompts, settled
from counterpoint.train.scoring.scorers import KEPT, UNKNOWN_INSTRUCTION, Scorers
from counterpoint.train.scoring.truths import disagreements

DEFAULT_SIZE = 100
_ANSWERED = "<|channel|>final<|message|>Yes.<|return|>"


@dataclass(frozen=True, slots=True)
class Task:
    """Items and how they are sampled. notices: what a reader of the results should know. environment: in which they
    are. rollout: how they are rolled out, None where each is answered at once. truncation: of the distribution that is
    drawn from, None for that of the suite."""

    name: str
    prompts: tuple[EvalPrompt, ...]
    efforts: tuple[Effort, ...]
    samples: int
    max_new_tokens: int
    temperature: float
    notices: tuple[str, ...] = ()
    environment: EnvironmentTask | ForeignTask | None = None
    rollout: TaskRollout | None = None
    truncation: Truncation | None = None

    @property
    def size(self) -> int:
        """Samples of the whole task."""
        return len(self.prompts) * len(self.efforts) * self.samples


def build_tasks(suite: SuiteSettings, rows: bool = False, inherited: bool = False) -> list[Task]:
    """The tasks of a suite in order; without any, its `prompts` as one task. rows: files hold rows of an environment,
    which need no prompt. inherited: its rewards are those of a run, which may judge nothing here.

    ConfigError and DataError for what is unusable: a scorer that does not fit the truth of a row, a duplicate id, ...
    """
    settings = task_settings(suite)
    names = _names(settings)
    with Scorers(suite.scorer_seconds) as scorers, Guard(suite.scorer_seconds) as guard, Toolkits() as toolkits:
        tasks = [_build(task, name, suite, guard, rows, toolkits) for task, name in zip(settings, names, strict=True)]
        for task in tasks:
            _check_scorers(task, scorers)
            if task.rollout is not None:
                told = check_rewards(task.rollout, task.name, task.prompts, task.environment is not None, inherited)
                tasks[tasks.index(task)] = replace(task, notices=(*task.notices, *told))
    if not inherited:
        check_taken(suite, [task.rollout for task in tasks])
    return tasks


def task_settings(suite: SuiteSettings) -> tuple[TaskSettings, ...]:
    """The tasks of a suite, its prompts as one where it names none."""
    if suite.tasks:
        return suite.tasks
    return (ProbesTask(type="probes") if suite.prompts is None else FileTask(type="file", path=suite.prompts),)


def _names(settings: Sequence[TaskSettings]) -> list[str]:
    names = [task.name or _default_name(task) for task in settings]
    for name, count in Counter(names).items():
        if count > 1:
            raise ConfigError(f"eval.tasks: {count} tasks are named `{name}`: give each its own `name`")
    return names


def _default_name(task: TaskSettings) -> str:
    if isinstance(task, FileTask | ProbesTask | EnvironmentTask | ForeignTask) and task.path is not None:
        return PurePath(task.path.rpartition(":")[2]).stem or task.type
    if isinstance(task, ForeignTask):
        return task.id.rpartition("@")[2].rpartition("/")[2].removesuffix(".py") or task.type
    return task.generator if isinstance(task, ReasoningGymTask) else task.type


def _build(task: TaskSettings, name: str, suite: SuiteSettings, guard: Guard, rows: bool, toolkits: Toolkits) -> Task:
    task = settled(task) if isinstance(task, ReadyTask) else task
    own = task if isinstance(task, EnvironmentTask | ForeignTask) else None
    if isinstance(own, EnvironmentTask) and not file_of(own.class_name).is_file():
        raise ConfigError(f"task {name}: class: {file_of(own.class_name)}: there is no such file")
    prompts, notices = _items(task, guard, rows or own is not None)
    prompts = [with_follow_ups(_offered(prompt, task), task) for prompt in prompts]
    rollout = rollout_of(task, suite, name, prompts, toolkits)
    if rollout is not None and rollout.tools is not None:
        notices = [*notices, *toolkits.of(rollout.tools).notes]
    if rollout is not None:
        prompts = [replace(p, conversation=declared(p.conversation, rollout, toolkits)) for p in prompts]
    prompts = clustered(prompts)
    repeated = [id for id, count in Counter(prompt.id for prompt in prompts).items() if count > 1]
    if repeated:
        raise DataError(f"task {name}: {len(repeated)} ids appear more than once (`{repeated[0]}`): make them differ")
    return Task(
        name=name,
        prompts=tuple(_scored(replace(p, task=name), task) for p in prompts),
        efforts=task.efforts or suite.efforts,
        samples=task.samples or suite.samples,
        max_new_tokens=task.max_new_tokens or suite.max_new_tokens,
        temperature=suite.temperature if task.temperature is None else task.temperature,
        notices=tuple(notices),
        environment=own,
        rollout=rollout,
        truncation=_truncation(task, suite),
    )


def _truncation(task: TaskSettings, suite: SuiteSettings) -> Truncation | None:
    """What the task sets of its own, with the suite's where it is null; None where that is the suite's."""
    names = TruncationSettings.model_fields
    own = {name: value for name in names if (value := getattr(task, name)) is not None}
    found = Truncation.of(suite.model_copy(update=own))
    return None if found == Truncation.of(suite) else found


def _scored(prompt: EvalPrompt, task: TaskSettings) -> EvalPrompt:
    """The prompt compared as the task asks, in each turn with a truth, else in its last one. An environment says what
    is right."""
    if isinstance(task, EnvironmentTask | ForeignTask):
        return replace(prompt, scorer=None)
    turns = (prompt, *prompt.follow_ups)
    if task.scorer is None:
        return prompt
    where = [n for n, turn in enumerate(turns) if turn.scorer is not None] or [len(turns) - 1]
    later = [replace(each, scorer=task.scorer) if n in where else each for n, each in enumerate(prompt.follow_ups, 1)]
    return replace(prompt, scorer=task.scorer if 0 in where else None, follow_ups=tuple(later))


def _items(task: TaskSettings, guard: Guard, rows: bool) -> tuple[list[EvalPrompt], list[str]]:
    size = task.size or DEFAULT_SIZE
    if isinstance(task, ArithmeticTask):
        return arithmetic_items(size, task.seed, task.options), []
    if isinstance(task, ReasoningGymTask):
        return gym_items(task.generator, size, task.seed, task.options, guard)
    if isinstance(task, ReadyTask):
        return [replace(prompt, id=_file_id(prompt)) for prompt in ready_prompts(task)], []
    if isinstance(task, ForeignTask) and task.path is None:
        listed = listed_tasks(task.type, task, size)
        return [row_prompt(row, f"{task.id}:{n + 1}") for n, row in enumerate(listed)], []
    if isinstance(task, EnvironmentTask | ForeignTask) or (rows and isinstance(task, FileTask)):
        assert task.path is not None
        named = task.environment if isinstance(task, EnvironmentTask) else None
        found = load_rows(SourceSettings(path=task.path, format=task.format, rows=task.size if named is None else None))
        found, told = (found, []) if named is None else of_environment(found, named)
        return [replace(prompt, id=_file_id(prompt)) for prompt in found[: task.size]], told
    assert isinstance(task, FileTask | ProbesTask)
    spec = SourceSettings(path=task.path or BUILT_IN, format=task.format, rows=task.size)
    prompts = [replace(prompt, id=_file_id(prompt)) for prompt in load_prompts(spec, truth=task.truth)]
    told = disagreements(prompt.notice for prompt in prompts)
    return as_probes(prompts) if isinstance(task, ProbesTask) else prompts, told


def _file_id(prompt: EvalPrompt) -> str:
    """The row's own id, else the file's name and the line: the same wherever the file is."""
    if prompt.id != prompt.conversation.source:
        return prompt.id
    return prompt.id.rpartition("/")[2]


def _offered(prompt: EvalPrompt, task: TaskSettings) -> EvalPrompt:
    """Instructions and tools for an item that has none."""
    conversation = prompt.conversation
    instructions = task.instructions or (ONLY_THE_ANSWER if isinstance(task, ReasoningGymTask) else None)
    if conversation.instructions is None and conversation.opening_ids is None and instructions is not None:
        conversation = replace(conversation, instructions=instructions)
    named = task.tools.declared if task.tools is not None else ()
    if named and not conversation.tools and not conversation.builtin_tools and conversation.opening_ids is None:
        functions, builtins = read_tool_names(named)
        conversation = replace(conversation, tools=functions, builtin_tools=builtins)
    return replace(prompt, conversation=conversation)


def _check_scorers(task: Task, scorers: Scorers) -> None:
    """Look each scorer up, and score an empty completion by ours: that reports a missing truth before hours of work."""
    nothing = parse_completion([])
    tried: set[str] = set()
    _check_instructions(task, scorers)
    for prompt in task.prompts:
        for asked in (prompt, *prompt.follow_ups):
            if asked.scorer is None:
                continue
            try:
                if asked.scorer not in tried:
                    scorers.check(asked.scorer)
                if ":" not in asked.scorer:
                    scorers.score(asked.scorer, nothing, asked.reference)
            except ConfigError as error:
                raise ConfigError(f"task {task.name}: {prompt.id}: {error}") from None
            tried.add(asked.scorer)


def _check_instructions(task: Task, scorers: Scorers) -> None:
    """Try every kind of instruction once on some answer: a name that no package knows would fail at every sample."""
    answered = parse_completion(load_vocabulary().encode_with_specials(_ANSWERED))
    tried: set[str] = set()
    for prompt in task.prompts:
        names = {name for name, _ in prompt.reference.instructions or ()}
        if prompt.scorer in KEPT and not names <= tried:
            tried |= names
            detail = scorers.score(prompt.scorer, answered, prompt.reference).detail
            if UNKNOWN_INSTRUCTION in detail:
                reason = detail[detail.index(UNKNOWN_INSTRUCTION) :]
                raise ConfigError(f"task {task.name}: {prompt.id}: {reason}: look at `instruction_id_list`")
