"""What the recipes that train do alike, in the order in which they do it: `prepare`, and, once a recipe has made its
trainer, `train_to_end` with the measurements, the result and the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import set_seed

from counterpoint.configs.dump import plain
from counterpoint.configs.errors import ConfigError, RunError
from counterpoint.configs.eval_section import FileTask, SamplingSettings, SuiteSettings
from counterpoint.configs.schema import GrpoRun, TrainingRun
from counterpoint.configs.user_code import resume_command
from counterpoint.data.dataset.row_keys import keys_of
from counterpoint.data.harmony.render import Renderer
from counterpoint.train.adapters.attach import attach_lora, attachment_table
from counterpoint.train.adapters.implementations import use_implementations
from counterpoint.train.adapters.parts import freeze
from counterpoint.train.adapters.routing import ExpertReport
from counterpoint.train.checkpoints.resume import Identity
from counterpoint.train.checkpoints.start import check_adapter_base, put_start
from counterpoint.train.evals.hook import ChannelEval, Served, channel_verdict, read_points
from counterpoint.train.evals.publish import PAGE, write_report
from counterpoint.train.evals.report_data import run_report
from counterpoint.train.evals.rollouts import RolloutPool
from counterpoint.train.evals.task_rollouts import check_taken
from counterpoint.train.evals.tasks import Task, build_tasks
from counterpoint.train.loop.base_trainer import BaseTrainer
from counterpoint.train.loop.best import KeepBest
from counterpoint.train.loop.callbacks import RunLog
from counterpoint.train.loop.held_out import HeldOut, Measure
from counterpoint.train.loop.optimizers import prepare_optimizer
from counterpoint.train.model.load import LoadedModel, device_of, load_model
from counterpoint.train.run.gathering import patient_gather
from counterpoint.train.run.session import Session
from counterpoint.train.run.world import process_number, rows_per_step, world_size
from counterpoint.train.scoring.prompts import EvalPrompt

PROMPTS = "prompts"
"""Name of the task that the evaluation's prompts are where they are rolled out."""
BAD_ROWS, BAD_HELD_OUT = "bad_rows.jsonl", "bad_held_out_rows.jsonl"


@dataclass(frozen=True)
class Prepared:
    """A run whose data is read and whose model is loaded.

    steps: optimizer steps; prompts, tasks: those of the evaluation, rolled: its prompts where they are rolled out;
    identity: what its checkpoints share with it.
    """

    loaded: LoadedModel
    identity: Identity
    steps: int
    prompts: Sequence[EvalPrompt]
    tasks: Sequence[Task] = ()
    rolled: Task | None = None


def prepare(
    settings: TrainingRun, session: Session, fingerprint: str, steps: int, prompts: Sequence[EvalPrompt]
) -> Prepared:
    """Compares the run with the checkpoint that it resumes from (RunError), then loads the model and prints what
    trains.

    fingerprint: of the training data. Tracking begins here.
    """
    rolled, tasks = evaluation_tasks(settings, prompts)
    for notice in (notice for task in (rolled, *tasks) if task is not None for notice in task.notices):
        session.warn(notice)
    base = session.pinned(settings)
    check_adapter_base(settings.model, base)
    identity = Identity(plain(settings), fingerprint, rows_per_step(settings), base)
    session.began(settings, identity, steps)
    set_seed(settings.seed)
    loaded = load_trainable(settings, base["revision"])
    table = attachment_table(loaded.model)
    onward = f", its adapter {settings.model.adapter} trained onward" if settings.model.adapter else ""
    forms = f"prompts as data.serving: {settings.data.serving}"
    session.say(f"model {loaded.source}{onward}, {forms}\n{table.text()}")
    session.begins_tracking(settings)
    session.tracker.scalars(0, table.as_dict())
    return Prepared(loaded, identity, steps, prompts, tasks, rolled)


def evaluation_tasks(settings: TrainingRun, prompts: Sequence[EvalPrompt] = ()) -> tuple[Task | None, list[Task]]:
    """The prompts of the evaluation as a task, where they are rolled out, and its `tasks`. What is learned with tools
    is evaluated with them, and the run's rewards. ConfigError or DataError for what cannot be used."""
    chosen = settings.eval
    shared = {name: getattr(chosen, name) for name in SamplingSettings.model_fields if name != "prompts"}
    own = {"tools": chosen.tools, "rewards": chosen.rewards}
    learned = of_the_run(settings) if own == dict.fromkeys(own) else {}
    suite = SuiteSettings(**(shared | learned))
    file = chosen.prompts is not None and (suite.tools or suite.rewards or any(each.follow_ups for each in prompts))
    asked = FileTask(type="file", name=PROMPTS, path=str(chosen.prompts)) if file else None
    tasks = chosen.tasks if asked is None else (asked, *chosen.tasks)
    built = build_tasks(suite.model_copy(update={"tasks": tasks}), inherited=bool(learned)) if tasks else []
    if not tasks and not learned:
        check_taken(suite, ())
    used = [task for task in built if task.rollout is not None]
    if used and settings.launch.strategy == "fsdp2" and not on_servers(settings):
        raise ConfigError("eval: tools, turns and rewards need the whole model, which `fsdp2` parts: use `ddp`")
    with RolloutPool() as pool:
        for task in used:
            pool.of(task)
    return (built[0], built[1:]) if asked is not None else (None, built)


def on_servers(settings: TrainingRun) -> bool:
    """Whether servers sample the evaluations of a run: those that sample its rollouts."""
    return isinstance(settings, GrpoRun) and settings.rollout.engine == "server"


def of_the_run(settings: TrainingRun) -> dict[str, Any]:
    """The tools of a run that learns with them, with its rewards and limits, as settings of an evaluation."""
    if not isinstance(settings, GrpoRun) or not settings.tools.any:
        return {}
    rewards = tuple(each for each in settings.rewards if getattr(each, "per", None) != "step")
    limits = {"calls": settings.rollout.calls, "completion_tokens": settings.rollout.completion_tokens}
    return {"tools": settings.tools, "rewards": rewards, **limits}


def load_trainable(settings: TrainingRun, revision: str | None = None) -> LoadedModel:
    """The model on its device, with the adapter that the run trains, on the chosen implementation.

    revision: the commit that a Hugging Face name is pinned to.
    """
    device = device_of(settings.train.device)
    prepare_optimizer(settings.train.optimizer, device.type)
    loaded = load_model(settings.model.model_copy(update={"revision": revision or settings.model.revision}), device)
    if settings.model.adapter is not None:
        loaded = put_start(loaded, settings.model, trainable=True)
    elif settings.lora.enabled:
        loaded = loaded.with_model(attach_lora(loaded.model, settings.lora))
    else:
        freeze(loaded.model, settings.train)
    use_implementations(loaded.model, settings.model, settings.train.activation_checkpointing == "experts")
    return loaded


def train_to_end(
    settings: TrainingRun,
    session: Session,
    prepared: Prepared,
    trainer: BaseTrainer,
    n_bad: int = 0,
    served: Served | None = None,
) -> int:
    """Train, save the result, write the report. The exit code: 143 or 130 where a signal ended it before its last step.

    n_bad: rows, trained or held out, that could not be used. served: the servers that sample evaluations. RunError
    where a threshold of the evaluation ended it.
    """
    trainer.warn = session.warn
    hook = add_measurements(settings, session, prepared, trainer, served)
    best = KeepBest(trainer, settings.train, session.say)
    if settings.train.keep_best or settings.train.stop_when:
        trainer.add_callback(best)
    steps, checkpoint = prepared.steps, session.checkpoint
    going_on = f", going on from step {checkpoint.step}" if checkpoint else ""
    session.say(f"{steps} step{'' if steps == 1 else 's'}{going_on}")
    session.begins_training()
    trainer.train(resume_from_checkpoint=str(checkpoint.folder) if checkpoint else None)
    best.agree()
    if trainer.state.global_step < steps and best.ended is None:
        return ended_early(settings, session, trainer, hook)
    result = session.path / ("adapter" if settings.lora.enabled else "model")
    trainer.save_final(result, best.best_step)
    step = trainer.state.global_step
    session.ended("finished", step=step, result_step=best.best_step or step)
    if best.best_step is not None:
        session.say(f"best        step {best.best_step} of {step}: {settings.train.keep_best} {best.best:.4g}")
    elif settings.train.keep_best is not None:
        session.warn(f"train.keep_best: {settings.train.keep_best} was never measured: the result is the last step")
    trouble = trainer.learning.trouble()
    if session.folder is not None:
        report(session, prepared.loaded, result, n_bad, learned=trouble is None)
    if trouble is not None:
        raise RunError(f"{session.path}: {trouble}: nothing was learned; {trainer.no_learning_advice}")
    return 0


def bad_rows_file(session: Session, name: str) -> Path | None:
    """Where rows that cannot be used are written; None in a process that writes nothing."""
    return session.path / name if session.folder is not None else None


def asked_by(prompts: Sequence[EvalPrompt]) -> dict[int, str]:
    """`RowKeys.asked` of each prompt of the evaluation -> its name."""
    return {keys_of(prompt.conversation).asked: prompt.id for prompt in reversed(prompts)}


def add_held_out(settings: TrainingRun, session: Session, trainer: BaseTrainer, measure: Measure) -> None:
    """Have held-out data measured at the steps of the evaluation."""
    trainer.add_callback(HeldOut(trainer, measure, settings.eval.every, settings.eval.at_start, session.say))


def add_measurements(
    settings: TrainingRun, session: Session, prepared: Prepared, trainer: BaseTrainer, served: Served | None = None
) -> ChannelEval:
    """Metrics, experts, and the evaluation by sampling, in which every process has a share."""
    trainer.add_callback(ExpertReport(session.path, session.tracker.scalars))
    writes = session.folder is not None
    if session.folder is not None:
        trainer.add_callback(RunLog(session.folder, session.tracker, session.progress))
    hook = ChannelEval(
        prepared.loaded,
        Renderer(prepared.loaded.vocabulary, settings.data),
        prepared.prompts,
        settings.eval,
        session.path / "eval" if writes else None,
        log=session.tracker,
        say=session.say,
        warn=session.warn,
        seed=settings.seed,
        stops=lambda: session.stop.received is not None,
        process=process_number(),
        processes=world_size(),
        gather=patient_gather(settings.launch.sampling_timeout),
        measured=trainer.measured.update,
        tasks=prepared.tasks,
        rolled=prepared.rolled,
        served=served,
    )
    trainer.add_callback(hook)
    return hook


def ended_early(settings: TrainingRun, session: Session, trainer: BaseTrainer, hook: ChannelEval) -> int:
    """A signal, a threshold of the evaluation or the end of learning (both RunError) ended training before its last
    step."""
    step = trainer.state.global_step
    session.ended("stopped", step=step)
    command = resume_command(str(session.path), settings)
    if hook.stopped is not None:
        raise RunError(f"{hook.stopped}: look at {hook.folder}; there is a checkpoint, `{command}` resumes from it")
    if trainer.stop.received is None and (trouble := trainer.learning.trouble()) is not None:
        raise RunError(
            f"{session.path}: step {step}: {trouble}: nothing more is learned; {trainer.no_learning_advice}, or set "
            f"train.on_no_learning: warn; there is a checkpoint, `{command}` goes on from it"
        )
    if step:
        session.say(f"stopped after step {step}, with a checkpoint; continue with\n  {command}")
    else:
        session.say("stopped before the first step: the same command starts it again")
    return trainer.stop.exit_code or 143


def report(session: Session, loaded: LoadedModel, result: Path, n_bad: int, learned: bool = True) -> None:
    """Write the page; say where everything is, what to type next, and how well the channels are kept."""
    files = [str(session.path / name) for name in (BAD_ROWS, BAD_HELD_OUT) if (session.path / name).is_file()]
    if n_bad:
        session.warn(f"{n_bad} bad rows were quarantined: see {' and '.join(files)}")
    points = read_points(session.path / "eval")
    if points:
        write_report(session.path, run_report(session.path), loaded.vocabulary)
        session.say(f"report      {session.path / PAGE}")
    session.say(f"{result.name:<11} {result}")
    if learned:
        session.say(f"next        counterpoint evaluate {session.path}")
    if verdict := channel_verdict(points):
        session.say(verdict)
