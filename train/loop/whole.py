"""What TRL's trainers for pairs and for rewards lack: checkpoints that are whole, no step on a broken gradient, an end
with a checkpoint on a signal, and evaluation after saving."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl

from counterpoint.configs.errors import RunError
from counterpoint.train.checkpoints import save
from counterpoint.train.checkpoints.resume import Identity
from counterpoint.train.checkpoints.together import write_together
from counterpoint.train.checkpoints.weights import load_weights, save_weights, state_bytes
from counterpoint.train.loop.arguments import LoopSettings
from counterpoint.train.loop.stop import StopSignal

LOOP_STATE = "loop_state.json"
TRAINER_STATE = "trainer_state.json"
_Base = Trainer if TYPE_CHECKING else object


class WholeRun(_Base):
    """Mixed in before a trainer of TRL; `take_over` is called once that one is made."""

    loop: LoopSettings
    identity: Identity
    extras: Callable[[Path], None] | None
    stop: StopSignal
    base: Any
    saved_step: int | None = None
    evaluated_step: int | None = None

    def take_over(
        self, loop: LoopSettings, identity: Identity, extras: Callable[[Path], None] | None, stop: StopSignal | None
    ) -> None:
        """loop, identity, extras, stop: as of `CounterpointTrainer`."""
        self.loop, self.identity, self.extras, self.stop = loop, identity, extras, stop or StopSignal()
        self.base = self.accelerator.unwrap_model(self.model)
        self.remove_callback(PrinterCallback)
        self.add_callback(_EndOnSignal(self))

    @property
    def stopped(self) -> bool:
        """Whether a signal ends training before its last step."""
        return self.stop.received is not None and self.state.global_step < self.state.max_steps

    def _send_telemetry(self) -> None:
        """TRL reports each run to its makers; nothing leaves this machine from here."""

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return 0

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> float:
        """The last place before the optimizer step, so a broken gradient ends the run here."""
        norm = float(torch.as_tensor(super()._get_grad_norm(model, grad_norm)))
        if not math.isfinite(norm):
            whole = [f for f in save.checkpoints_in(self.loop.checkpoints) if (f / save.MARKER).exists()]
            raise RunError(
                f"step {self.state.global_step + 1}: the gradient is not finite; stopped before the weights were "
                f"changed, checkpoint: {whole[-1] if whole else 'none'}: lower train.learning_rate"
            )
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        # transformers takes any log line for the one that was due; a callback's own must not swallow it.
        still_to_log = self.control.should_log and "loss" not in logs
        super().log(logs, start_time)
        self.control.should_log = still_to_log

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Log and save as transformers does, and only then evaluate: a kill during a long evaluation costs no step."""
        super()._maybe_log_save_evaluate(*args, **kwargs)
        step = self.state.global_step
        if step == self.evaluated_step or self.stopped:
            return
        self.evaluated_step = step
        for callback in self.callback_handler.callbacks:
            if hasattr(callback, "after_step"):
                callback.after_step(self.args, self.state, self.control)  # pyright: ignore[reportAttributeAccessIssue]
        if self.control.should_save and self.saved_step != step:
            self._save_checkpoint(self.model_wrapped, None)
        self.control.should_save = False

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """A checkpoint of this step that is whole or not there; older ones go only when it stands."""
        step = self.state.global_step
        if self.saved_step == step:
            return
        details = {**self.identity.as_details(), "step": step}
        target = self.loop.checkpoints / save.checkpoint_name(step)
        write_together(self.accelerator, target, self._fill_checkpoint, details, state_bytes(self.base))
        self.saved_step = step
        if self.args.should_save:
            save.rotate(self.loop.checkpoints, self.loop.keep)

    def _fill_checkpoint(self, folder: Path) -> None:
        self.save_model(str(folder), _internal_call=True)
        self._save_optimizer_and_scheduler(str(folder))
        self._save_scaler(str(folder))
        self._save_rng_state(str(folder))
        if self.args.should_save:
            callbacks = {type(c).__name__: c.state_dict() for c in self._stateful_callbacks()}
            (folder / LOOP_STATE).write_text(json.dumps({"callbacks": callbacks}), encoding="utf-8")
            self.state.save_to_json(str(folder / TRAINER_STATE))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        if self.args.should_save:
            folder = Path(output_dir or str(self.args.output_dir))
            folder.mkdir(parents=True, exist_ok=True)
            save_weights(self.base, folder, state_dict)
            if self.extras is not None:
                self.extras(folder)

    def save_final(self, folder: Path) -> None:
        """The trained adapter or model on its own, for use after the run: whole or not there."""
        details = {**self.identity.as_details(), "step": self.state.global_step}
        write_together(
            self.accelerator, folder, lambda place: self.save_model(str(place), _internal_call=True), details
        )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_weights(self.base, Path(resume_from_checkpoint))

    def _init_training_state(self, max_steps: int, *args: Any, **kwargs: Any) -> tuple[int, int]:
        progress = super()._init_training_state(max_steps, *args, **kwargs)
        self.state.compute_steps(self.args, max_steps)
        resumed = kwargs.get("resume_from_checkpoint", args[2] if len(args) > 2 else None)
        if resumed is not None:
            state = json.loads((Path(resumed) / LOOP_STATE).read_text(encoding="utf-8"))
            for callback in self._stateful_callbacks():
                if type(callback).__name__ in state["callbacks"]:
                    callback.load_state_dict(state["callbacks"][type(callback).__name__])
            self.saved_step = self.state.global_step
        return progress

    def _stateful_callbacks(self) -> list[Any]:
        return [callback for callback in self.callback_handler.callbacks if hasattr(callback, "load_state_dict")]


class _EndOnSignal(TrainerCallback):
    def __init__(self, trainer: WholeRun) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        if self.trainer.stop.received is not None:
            control.should_save = True
            control.should_training_stop = True
