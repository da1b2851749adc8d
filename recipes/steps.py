"""What the recipes that train do alike: the model, the measurements, training to its end, the result and the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from counterpoint.configs.errors import RunError
from counterpoint.configs.schema import TrainingRun
from counterpoint.data.harmony.render import Renderer
from counterpoint.train.adapters.attach import attach_lora, attachment_table
from counterpoint.train.adapters.implementations import use_implementations
from counterpoint.train.adapters.routing import ExpertReport
from counterpoint.train.evals.hook import ChannelEval, channel_verdict, read_points
from counterpoint.train.evals.publish import PAGE, write_report
from counterpoint.train.evals.report_data import run_report
from counterpoint.train.loop.base_trainer import BaseTrainer
from counterpoint.train.loop.callbacks import RunLog
from counterpoint.train.loop.optimizers import prepare_optimizer
from counterpoint.train.model.load import LoadedModel, device_of, load_model
from counterpoint.train.run.session import Session
from counterpoint.train.scoring.prompts import EvalPrompt

BAD_ROWS = "bad_rows.jsonl"


def load_trainable(settings: TrainingRun) -> LoadedModel:
    """The model on its device, with a fresh adapter where the run trains one, on the chosen implementation."""
    device = device_of(settings.train.device)
    prepare_optimizer(settings.train.optimizer, device.type)
    loaded = load_model(settings.model, device)
    if settings.lora.enabled:
        loaded = loaded.with_model(attach_lora(loaded.model, settings.lora))
    use_implementations(loaded.model, settings.model, settings.train.activation_checkpointing == "experts")
    return loaded


def prepare_model(settings: TrainingRun, session: Session) -> LoadedModel:
    """`load_trainable`, and what trains said and tracked. Tracking begins here."""
    loaded = load_trainable(settings)
    table = attachment_table(loaded.model)
    session.say(f"model {loaded.source}\n{table.text()}")
    session.begins_tracking(settings)
    session.tracker.scalars(0, table.as_dict())
    return loaded


def add_measurements(
    settings: TrainingRun,
    session: Session,
    loaded: LoadedModel,
    trainer: BaseTrainer,
    renderer: Renderer,
    prompts: Sequence[EvalPrompt],
) -> ChannelEval | None:
    """Metrics, experts, and the evaluation by sampling (None where this process does not write it)."""
    trainer.add_callback(ExpertReport(session.path, session.tracker.scalars))
    if session.folder is None:
        if trainer.is_fsdp_enabled:  # every process has a part of the weights that are sampled from
            # This session's `warn` is silent: what was measured is told by the process that writes it down.
            hook = ChannelEval(
                loaded, renderer, prompts, settings.eval, None, say=session.say, warn=session.warn, seed=settings.seed
            )
            trainer.add_callback(hook)
        return None
    trainer.add_callback(RunLog(session.folder, session.tracker, session.progress))
    hook = ChannelEval(
        loaded,
        renderer,
        prompts,
        settings.eval,
        session.path / "eval",
        log=session.tracker,
        say=session.say,
        warn=session.warn,
        seed=settings.seed,
    )
    trainer.add_callback(hook)
    return hook


def train_to_end(
    settings: TrainingRun,
    session: Session,
    loaded: LoadedModel,
    trainer: BaseTrainer,
    hook: ChannelEval | None,
    steps: int,
    n_bad: int = 0,
) -> int:
    """Train, save the result, write the report. The exit code: 143 or 130 where a signal ended it before `steps`."""
    checkpoint = session.checkpoint
    going_on = f", going on from step {checkpoint.step}" if checkpoint else ""
    session.say(f"{steps} step{'' if steps == 1 else 's'}{going_on}")
    session.begins_training()
    trainer.train(resume_from_checkpoint=str(checkpoint.folder) if checkpoint else None)
    if trainer.state.global_step < steps:
        return ended_early(session, trainer, hook)
    result = session.path / ("adapter" if settings.lora.enabled else "model")
    trainer.save_final(result)
    session.ended("finished", step=steps)
    if session.folder is not None:
        report(session, loaded, result, n_bad)
    return 0


def ended_early(session: Session, trainer: BaseTrainer, hook: ChannelEval | None) -> int:
    """A signal, or a threshold of the evaluation (RunError), ended training before its last step."""
    step = trainer.state.global_step
    session.ended("stopped", step=step)
    command = f"counterpoint train --resume {session.path}"
    if hook is not None and hook.stopped is not None:
        raise RunError(f"{hook.stopped}: look at {hook.folder}; there is a checkpoint, `{command}` goes on from it")
    session.say(f"stopped after step {step}, with a checkpoint; go on with\n  {command}")
    return trainer.stop.exit_code or 143


def report(session: Session, loaded: LoadedModel, result: Path, n_bad: int = 0) -> None:
    """Write the page; say where everything is, what to type next, and how well the channels are kept."""
    if n_bad:
        session.warn(f"{n_bad} bad rows were set aside: see {session.path / BAD_ROWS}")
    points = read_points(session.path / "eval")
    if points:
        write_report(session.path, run_report(session.path), loaded.vocabulary)
        session.say(f"report      {session.path / PAGE}")
    session.say(f"{result.name:<11} {result}\nnext        counterpoint evaluate {session.path}")
    if verdict := channel_verdict(points):
        session.say(verdict)
