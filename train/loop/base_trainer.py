"""What TRL's trainers lack: complete checkpoints, no step on a gradient that is not finite, an end with a checkpoint on
a signal that all processes agree on, and evaluation after saving."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import torch
from peft import PeftModel
from torch.nn.parallel import DistributedDataParallel
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from counterpoint.configs.errors import RunError
from counterpoint.train.checkpoints import save
from counterpoint.train.checkpoints.distributed_save import write_together
from counterpoint.train.checkpoints.resume import Identity
from counterpoint.train.checkpoints.weights import load_weights, save_weights, state_bytes
from counterpoint.train.loop.learning_watch import LearningWatch
from counterpoint.train.loop.optimizers import give_rates
from counterpoint.train.loop.training_arguments import LoopSettings
from counterpoint.train.model.marker import why_broken
from counterpoint.train.model.mxfp4 import lay_bare, packed_names
from counterpoint.train.model.sharded import gathered_weights, is_sharded
from counterpoint.train.run.signals import StopSignal

LOOP_STATE = "loop_state.json"
TRAINER_STATE = "trainer_state.json"
_HYPERPARAMETERS = ("initial_lr", "weight_decay", "betas", "eps")
_Base = Trainer if TYPE_CHECKING else object


@runtime_checkable
class StepCallback(Protocol):
    """A callback that runs after a step is logged and saved, such as an evaluation; a kill in it loses no step."""

    def after_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None:
        """Called by every process that has the callback. What it sets in `control` holds for all of them."""
        ...


@runtime_checkable
class StatefulCallback(Protocol):
    """A callback whose state is kept in checkpoints, under the name of its class."""

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON values. Called by every process, the main one's are kept."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class BaseTrainer(_Base):
    """Mixed in before a trainer of TRL, whose constructor then calls `set_up_loop`.

    Of its callbacks, a `StepCallback` and a `StatefulCallback` are called in addition to the events of transformers.
    """

    loop: LoopSettings
    identity: Identity
    extras: Callable[[Path], None] | None
    stop: StopSignal
    base: Any
    stop_agreed: bool = False
    saved_step: int | None = None
    kept_step: int | None = None
    evaluated_step: int = 0
    measured: dict[str, float]
    learning: LearningWatch
    step_loss: float | None = None
    no_learning_advice: str = "lower train.learning_rate, or look at the data with `counterpoint show`"
    warn: Callable[[str], None] = print

    def set_up_loop(
        self, loop: LoopSettings, identity: Identity, extras: Callable[[Path], None] | None, stop: StopSignal | None
    ) -> None:
        """identity: what a checkpoint must share with a run that resumes from it. extras: writes further files into a
        checkpoint (the vocabulary map)."""
        self.loop, self.identity, self.extras, self.stop = loop, identity, extras, stop or StopSignal()
        self.base = self.accelerator.unwrap_model(self.model)
        self.measured = {}
        rows = self.base.get_output_embeddings().weight.shape[0]
        self.learning = LearningWatch(loop.no_learning_steps, rows)
        self._prepare_packed()
        self.remove_callback(PrinterCallback)
        for callback in filter(None, (loop.quantized, loop.offload, _StepEvents(self))):  # rounded, then evaluated
            self.add_callback(callback)

    def _prepare_packed(self) -> None:
        """An MXFP4 base in several processes: FSDP2 shards its bytes, DDP ignores them."""
        if self.is_fsdp_enabled:
            lay_bare(self.base)
        else:
            # Every process has read the same file; DDP would write the first one's copy over the others'. It has no
            # public way to leave a parameter out.
            ignored = packed_names(self.base)
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self.base, ignored)

    def _send_telemetry(self) -> None:
        """TRL's constructor sends telemetry by this; none is sent from here."""

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """transformers' names, which leave out biases and norms, without the sinks: they are logits, not a matrix."""
        return [name for name in super().get_decay_parameter_names(model) if not name.endswith("sinks")]

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """transformers' groups, decayed and not, split by `train.rates`."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new:
            give_rates(optimizer, cast(Any, self.model if model is None else model), self.loop.rates)
        return optimizer

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: transformers' estimate walks over all parameters in every micro-batch."""
        return 0

    # ---- the end of a step

    @property
    def asked_to_stop(self) -> bool:
        """Whether a signal came; where several processes run, whether all of them know."""
        return self.stop.received is not None if self._is_alone else self.stop_agreed

    @property
    def stopped(self) -> bool:
        """Whether a signal ends training before its last step; the same in all processes."""
        return self.asked_to_stop and self.state.global_step < self.state.max_steps

    @property
    def _is_alone(self) -> bool:
        return self.accelerator.num_processes == 1

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> float:
        """The gradient's norm before clipping. transformers asks for it once a step, in every process, and last before
        the optimizer; so a gradient that is not finite ends here."""
        norm = float(torch.as_tensor(super()._get_grad_norm(model, grad_norm)))
        self.check_step(model, norm)
        self._check_learning(norm)
        return norm

    def _check_learning(self, norm: float) -> None:
        """norm, rate and loss are of all processes, so all of them stop or none does."""
        where = f"step {self.state.global_step + 1}"
        if jumped := self.learning.jump(norm):
            clipped = " (train.max_grad_norm scales it down)" if self.args.max_grad_norm else ""
            self.warn(f"{where}: {jumped}{clipped}")
        rate = max(group["lr"] for group in cast(Any, self.optimizer).param_groups)
        if (trouble := self.learning.step(norm, rate, self.step_loss)) is None:
            return
        if not self.loop.stop_without_learning:
            self.warn(f"{where}: {trouble}: nothing is learned; {self.no_learning_advice}")
        elif self.learning.stands:
            self.control.should_save = self.control.should_training_stop = True
        else:
            raise RunError(
                f"{where}: {trouble}: nothing is learned; {self.no_learning_advice}, or set "
                f"train.on_no_learning: warn; checkpoint: {self.last_checkpoint() or 'none'}"
            )

    def check_step(self, model: torch.nn.Module, norm: float) -> None:
        """Called by every process before the weights change. RunError where the gradient is not finite."""
        if not self._is_alone:
            # Collective: every process takes every step, so all of them come here.
            stops = torch.tensor(float(self.stop.received is not None), device=self.args.device)
            self.stop_agreed = self.stop_agreed or float(cast(torch.Tensor, self.accelerator.reduce(stops, "sum"))) > 0
        if not math.isfinite(norm):
            raise RunError(
                f"step {self.state.global_step + 1}: the gradient is not finite; stopped before the weights were "
                f"changed, checkpoint: {self.last_checkpoint() or 'none'}: lower train.learning_rate"
            )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        # transformers counts any log line as the one that was due; a callback's own must not replace it.
        still_to_log = self.control.should_log and "loss" not in logs
        super().log(logs, start_time)
        self.control.should_log = still_to_log

    def log_measured(self, values: dict[str, float]) -> None:
        """Log what was measured beside training. TRL's own `log` would add its means since the last line to it, and
        forget them."""
        self.measured.update(values)
        still_to_log = self.control.should_log
        Trainer.log(cast(Any, self), dict(values))
        self.control.should_log = still_to_log

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Log and save as transformers does, and only then evaluate: a kill during a long evaluation loses no step.

        transformers calls it after every step and once more after an epoch.
        """
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if self.state.global_step != self.evaluated_step and not self.stopped:
            self.evaluate_step()

    def evaluate_step(self) -> None:
        """Call every `StepCallback`, and do what they ask for. Reached by every process: they agree at its end."""
        step = self.evaluated_step = self.state.global_step
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, StepCallback):
                callback.after_step(self.args, self.state, self.control)
        self._agree_on_control()
        if self.control.should_save and self.saved_step != step:
            self._save_checkpoint(cast(Any, self.model_wrapped), None)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)
        self.control.should_save = False

    def _agree_on_control(self) -> None:
        """Every process does what one of them was asked to do meanwhile: by a signal or an evaluation's threshold."""
        control = self.control
        wanted = [control.should_training_stop, control.should_save, self.stop.received is not None]
        flags = torch.tensor(wanted, dtype=torch.float32, device=self.args.device)
        # Collective: after `stopped`, which is agreed on, so that either all processes evaluate a step or none does.
        stop, save_now, signalled = (cast(torch.Tensor, self.accelerator.reduce(flags, "sum")) > 0).tolist()
        self.stop_agreed = self.stop_agreed or signalled
        control.should_training_stop, control.should_save = stop or signalled, save_now or signalled

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Nothing where a resumed run was already at its end, or a signal came before the first step; transformers
        would take one step more."""
        if self.state.global_step == 0:
            self._agree_on_control()
            self.control.should_save = False
        if self.control.should_training_stop or self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    # ---- checkpoints

    def loop_state(self) -> dict[str, Any]:
        """What a checkpoint keeps of the loop, as JSON. Called by every process."""
        return {
            "learning": self.learning.state(),
            "callbacks": {name: callback.state_dict() for name, callback in self._stateful_callbacks().items()},
        }

    def restore_loop(self, state: dict[str, Any]) -> None:
        """Restores what `loop_state` gave."""
        if "learning" in state:
            self.learning.restore(state["learning"])
        for name, callback in self._stateful_callbacks().items():
            if name in state["callbacks"]:
                callback.load_state_dict(state["callbacks"][name])

    def last_checkpoint(self) -> str | None:
        whole = [f for f in save.checkpoints_in(self.loop.checkpoints) if (f / save.MARKER).exists()]
        return str(whole[-1]) if whole else None

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """A checkpoint of this step that is complete or absent; older ones are removed only when it is complete.

        In place of transformers' own and of TRL's, which writes a model card as well. Run by every process.
        """
        step = self.state.global_step
        if self.saved_step == step:
            return
        details = {**self.identity.as_details(), "step": step}
        target = self.loop.checkpoints / save.checkpoint_name(step)
        write_together(self.accelerator, target, self.fill_checkpoint, details, state_bytes(self.base))
        self.saved_step = step
        if self.args.should_save:
            save.rotate(self.loop.checkpoints, self.loop.keep, self.kept_step)

    def fill_checkpoint(self, folder: Path) -> None:
        """Everything a run needs to resume bit for bit. Run by every process.

        The three `_save_...` write the files that transformers reads when it resumes; under FSDP2 they are collective.
        """
        self.save_model(str(folder), _internal_call=True)
        if is_sharded(self.base) and isinstance(self.base, PeftModel):
            self._save(str(folder), self._gathered())  # next to the shards, for `evaluate` and `export`
        self._save_optimizer_and_scheduler(str(folder))
        self._save_scaler(str(folder))
        self._save_rng_state(str(folder))
        state = self.loop_state()
        if self.args.should_save:
            (folder / LOOP_STATE).write_text(json.dumps(state), encoding="utf-8")
            self.state.save_to_json(str(folder / TRAINER_STATE))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Weights in their own format, with the vocabulary map, and nothing pickled."""
        if self.args.should_save:
            folder = Path(output_dir or str(self.args.output_dir))
            folder.mkdir(parents=True, exist_ok=True)
            save_weights(self.base, folder, state_dict)
            for write in filter(None, (self.extras, self.loop.quantized and self.loop.quantized.write)):
                write(folder)

    def save_final(self, folder: Path, step: int | None = None) -> None:
        """The trained adapter or model on its own, for use after the run: complete or absent.

        step: of the checkpoint whose weights it holds, None for those of now. Its marker says which step it is.
        RunError where that checkpoint is gone or damaged.
        """
        now = self.state.global_step
        details = {**self.identity.as_details(), "step": now if step is None else step}
        if step is None or step == now:
            write_together(self.accelerator, folder, lambda place: self._save(str(place), self._gathered()), details)
            return
        checkpoint = self.loop.checkpoints / save.checkpoint_name(step)
        if problem := why_broken(checkpoint):
            raise RunError(
                f"{checkpoint}: the best checkpoint cannot be the result: {problem}: take another checkpoint as it is"
            )
        write_together(self.accelerator, folder, lambda place: self._copy_weights(checkpoint, place), details)

    def _copy_weights(self, checkpoint: Path, place: Path) -> None:
        if self.args.should_save:
            state = (save.MARKER, LOOP_STATE, TRAINER_STATE)
            for path in checkpoint.iterdir():
                if path.suffix in (".safetensors", ".json") and path.name not in state:
                    shutil.copyfile(path, place / path.name)

    def _gathered(self) -> dict[str, torch.Tensor] | None:
        """What is saved of a sharded model; None where the model is not sharded. Run by every process."""
        return gathered_weights(self.base, keep=self.args.should_save) if is_sharded(self.base) else None

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Weights as `_save` wrote them; of a sharded model transformers reads its shards, once it is wrapped."""
        sharded = (Path(resume_from_checkpoint) / "optimizer_0").is_dir()
        if sharded != self.is_fsdp_enabled:
            wrote, now = ("fsdp2", "ddp or one process") if sharded else ("ddp or in one process", "fsdp2")
            raise RunError(
                f"{resume_from_checkpoint}: it was written with {wrote}, and this run is {now}: continue with the "
                "`launch.strategy` (and several processes) that it was written with"
            )
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            load_weights(self.base, Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """The optimizer's moments and the schedule's place out of the checkpoint, under the rates and the decay of this
        process: torch's `load_state_dict` restores the old hyperparameters as well."""
        if checkpoint is None:
            return
        groups: Any = cast(Any, self.optimizer).param_groups
        given = [{key: group[key] for key in _HYPERPARAMETERS if key in group} for group in groups]
        schedule: Any = getattr(self.lr_scheduler, "scheduler", self.lr_scheduler)
        rates = list(schedule.base_lrs)
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        except ValueError as error:
            raise RunError(
                f"{checkpoint}: its optimizer is not this run's ({error}): continue with the version and the settings "
                "that wrote it, or start a new run from its weights"
            ) from None
        schedule.base_lrs = rates
        schedule._last_lr = [
            rate * factor(schedule.last_epoch) for rate, factor in zip(rates, schedule.lr_lambdas, strict=True)
        ]
        groups = cast(Any, self.optimizer).param_groups
        for group, values, rate in zip(groups, given, schedule._last_lr, strict=True):
            group.update(values)
            group["lr"] = rate

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        """transformers' state, with the step intervals of this process rather than the checkpoint's, and our own."""
        progress = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        self.state.compute_steps(self.args, max_steps)
        if resume_from_checkpoint is not None:
            self.restore_loop(json.loads((Path(resume_from_checkpoint) / LOOP_STATE).read_text(encoding="utf-8")))
            self.saved_step = self.state.global_step
        return progress

    def _stateful_callbacks(self) -> dict[str, StatefulCallback]:
        """By the name of the class."""
        found = (callback for callback in self.callback_handler.callbacks if isinstance(callback, StatefulCallback))
        return {type(callback).__name__: callback for callback in found}


class _StepEvents(TrainerCallback):
    """Ends the run after a step in which SIGTERM or Ctrl-C came, with a checkpoint. A resumed run first evaluates the
    step that it begins at: what stopped it may have prevented that."""

    def __init__(self, trainer: BaseTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step > 0:
            self.trainer.evaluate_step()

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        if self.trainer.asked_to_stop:
            control.should_save = True
            control.should_training_stop = True
