"""TRL's SFTTrainer on our rows: loss at trained positions only, checkpoints that are whole, no step on a broken loss.

Legend: B rows of a micro-batch, S tokens of a row, T trained positions, H hidden, V rows of the vocabulary.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import gather_object
from torch import nn
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback, TrainerControl
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from counterpoint.configs.errors import RunError
from counterpoint.data.batches.tree import TreeRow
from counterpoint.train.checkpoints import save
from counterpoint.train.checkpoints.resume import Identity
from counterpoint.train.checkpoints.together import write_together
from counterpoint.train.checkpoints.weights import load_weights, save_weights, state_bytes
from counterpoint.train.loop.arguments import LoopSettings
from counterpoint.train.loop.guard import MicroBatch, SpikeWatch, named, not_finite_error
from counterpoint.train.loop.loss import weighted_nll
from counterpoint.train.loop.meter import Meter, StepClock
from counterpoint.train.loop.router_loss import RouterLoss
from counterpoint.train.loop.rows import RowCollator, row_numbers
from counterpoint.train.loop.stop import StopSignal
from counterpoint.train.loop.tokenizer_stub import TokenizerStub
from counterpoint.train.model.masks import attention_inputs

LOOP_STATE = "loop_state.json"
TRAINER_STATE = "trainer_state.json"


class CounterpointTrainer(SFTTrainer):
    """Trains `model` (a gpt-oss model, or PEFT's wrap of one) on tree rows.

    collate: rows to a batch (data/batches/collate.py). identity: what a checkpoint must share with a run that goes on
    from it. extras: writes further files into a checkpoint (the vocabulary map). warn: where warnings go. Callbacks
    with `state_dict` and `load_state_dict` keep their state in checkpoints; those with `after_step` are called with it
    once a step is logged and saved.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: PreTrainedModel | nn.Module,
        args: SFTConfig,
        rows: Sequence[TreeRow],
        collate: Callable[[list[TreeRow]], dict[str, Any]],
        loop: LoopSettings,
        identity: Identity,
        *,
        callbacks: list[TrainerCallback] | None = None,
        extras: Callable[[Path], None] | None = None,
        warn: Callable[[str], None] = print,
        stop: StopSignal | None = None,
    ) -> None:
        self.loop = loop
        self.identity = identity
        self.collate = collate
        self.extras = extras
        self.warn = warn
        self.stop = stop or StopSignal()
        self.stop_agreed = False
        self.saved_step: int | None = None
        self.evaluated_step = 0
        self.spikes = SpikeWatch(loop.spike_factor)
        self.clock = StepClock()
        self._step_batches: list[MicroBatch] = []
        self._forget_step()
        super().__init__(
            model=model,  # pyright: ignore[reportArgumentType]
            args=args,
            data_collator=RowCollator(rows, collate),  # pyright: ignore[reportArgumentType]
            train_dataset=row_numbers(rows),
            processing_class=TokenizerStub(),
            callbacks=[*(callbacks or []), _StepEvents(self)],
        )
        # From here on transformers would save the stand-in, and write its tokens into the model's config.
        self.processing_class = None
        self.remove_callback(PrinterCallback)
        self.meter = Meter(self.args.device)
        self.base = self.accelerator.unwrap_model(self.model)
        self.router_loss = RouterLoss(self.base) if loop.router_aux_loss_coef else None
        self.autocast = any(p.dtype == torch.bfloat16 for p in self.base.parameters())

    @property
    def stopped(self) -> bool:
        """Whether a signal ends training before its last step; the same in all processes."""
        return self.asked_to_stop and self.state.global_step < self.state.max_steps

    @property
    def asked_to_stop(self) -> bool:
        """Whether a signal came; where several processes run, whether all of them know."""
        alone = self.accelerator.num_processes == 1
        return self.stop.received is not None if alone else self.stop_agreed

    def _send_telemetry(self) -> None:
        """TRL reports each run to its makers; nothing leaves this machine from here."""

    # ---- loss

    def compute_loss_context_manager(self) -> contextlib.ExitStack:
        """bfloat16 autocast over a bfloat16 base: adapters stay float32 and multiply in bfloat16."""
        stack = contextlib.ExitStack()
        stack.enter_context(torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.autocast))
        return stack

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Sum of weight x nll over this micro-batch / sum of weights of the whole step, times the processes.

        The factor undoes DDP's mean over processes.
        """
        assert not return_outputs, "there are no logits to return"
        normaliser = torch.as_tensor(1.0 if num_items_in_batch is None else num_items_in_batch)
        # A step without any weight has loss zero, not 0 / 0.
        normaliser = torch.where(normaliser > 0, normaliser, torch.ones_like(normaliser))
        with self.router_loss.recording() if self.router_loss else contextlib.nullcontext():
            loss, nll_T = self.nll(model, inputs, normaliser)
        self.meter.add_targets(nll_T, inputs["target_weights"], inputs["target_channels"])
        self._remember(inputs, nll_T, loss)
        if self.router_loss is not None:
            share = self.loop.router_aux_loss_coef / self.current_gradient_accumulation_steps
            loss = loss + share / self.accelerator.num_processes * self.router_loss.read()
        return loss * self.accelerator.num_processes

    def nll(
        self, model: nn.Module, inputs: dict[str, Any], normaliser: torch.Tensor | float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(weighted loss / normaliser, detached nll (T,)) of a collated batch; no logits of context are made."""
        outputs = model(
            input_ids=inputs["input_ids"],
            position_ids=inputs["position_ids"],
            **attention_inputs(self.base, inputs["position_ids"], inputs["subtree_end"]),
            output_hidden_states=True,
            # None at all: on a CPU even one position's would copy a bfloat16 head.
            logits_to_keep=inputs["input_ids"].new_empty(0),
            use_cache=False,
        )
        # transformers puts the normalised output of the last layer here: what the head is fed with.
        hidden_BSH = outputs.hidden_states[-1]
        hidden_TH = hidden_BSH.flatten(0, 1).index_select(0, inputs["target_index"])
        weight_VH = self.base.get_output_embeddings().weight
        weight_VH = weight_VH.full_tensor() if hasattr(weight_VH, "full_tensor") else weight_VH
        return weighted_nll(
            hidden_TH, weight_VH, inputs["target_ids"], inputs["target_weights"], normaliser, self.loop.lean_loss
        )

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor:
        """Sum of weights over the whole step: all micro-batches of all processes."""
        total = torch.tensor(0.0, dtype=torch.float64)
        for batch in batch_samples:
            total += batch["target_weights"].sum(dtype=torch.float64).cpu()
        total = self.accelerator.gather(total.to(device).reshape(1)).sum()  # pyright: ignore[reportAttributeAccessIssue]
        return total.float() if device.type == "cuda" else total

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        """transformers' batches of one optimizer step; its time begins here."""
        self.clock.begin()
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: transformers' estimate walks over all parameters in every micro-batch."""
        return 0

    # ---- the step, before and after the optimizer

    def _remember(self, inputs: dict[str, Any], nll_T: torch.Tensor, loss: torch.Tensor) -> None:
        target_row_T = inputs["target_index"] // inputs["input_ids"].shape[1]
        self._step_batches.append(MicroBatch(inputs["sources"], target_row_T, nll_T))
        self._step_loss = self._step_loss.to(loss.device) + loss.detach().double()
        self._step_tokens[0] += int(inputs["target_ids"].shape[0])
        self._step_tokens[1] += int(inputs["n_tokens"])

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> float:
        """The gradient's norm before clipping; the last place before the optimizer step, so a broken step ends here."""
        norm = float(torch.as_tensor(super()._get_grad_norm(model, grad_norm)))
        stop = 1.0 if self.stop.received is not None else 0.0
        local = torch.tensor([*map(float, self._step_tokens), stop], dtype=torch.float64, device=self.args.device)
        local = torch.cat([self._step_loss.to(local).reshape(1), local])
        loss, trained, total, stops = self.accelerator.reduce(local, "sum").tolist()  # pyright: ignore
        self.stop_agreed = self.stop_agreed or stops > 0
        self._check_step(model, loss, norm)
        self.meter.add_step(loss, int(trained), int(total), self.clock.seconds())
        self._forget_step()
        return norm

    def _check_step(self, model: nn.Module, loss: float, norm: float) -> None:
        step = self.state.global_step + 1
        if not (torch.isfinite(torch.tensor([loss, norm])).all()):
            guilty = self._from_all([s for batch in self._step_batches for s in batch.rows_not_finite()])
            everyone = self._from_all([s for batch in self._step_batches for s in batch.rows()])
            raise not_finite_error(step, loss, guilty, everyone, self._last_checkpoint())
        if not self.spikes.is_spike(loss):
            return
        rows = named(self._from_all([s for batch in self._step_batches for s in batch.rows()]))
        what = f"step {step}: the loss jumped to {loss:.4g} from about {self.spikes.usual():.4g}; rows: {rows}"
        if self.loop.on_loss_spike == "stop":
            kept = self._last_checkpoint() or "none"
            raise RunError(f"{what}: stopped before the weights were changed (train.on_loss_spike), checkpoint: {kept}")
        if self.loop.on_loss_spike == "skip":
            # An optimizer leaves parameters without a gradient alone: no update, no decay, no change of its moments.
            model.zero_grad(set_to_none=True)
            what += ": its update is skipped"
        self.warn(what)

    def _forget_step(self) -> None:
        self._step_batches = []
        self._step_loss = torch.zeros((), dtype=torch.float64)
        self._step_tokens = [0, 0]

    def _from_all(self, items: list[str]) -> list[str]:
        return gather_object(items) if self.accelerator.num_processes > 1 else items

    def _last_checkpoint(self) -> str | None:
        whole = [f for f in save.checkpoints_in(self.loop.checkpoints) if (f / save.MARKER).exists()]
        return str(whole[-1]) if whole else None

    # ---- logging

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """transformers' numbers with the loss replaced by the meter's: whole-step losses, and loss by channel."""
        if "loss" in logs:
            sums_2C = self.accelerator.reduce(self.meter.sums_2C, "sum")
            logs.update(self.meter.read(sums_2C))  # pyright: ignore[reportArgumentType]
        self._metrics["train"].clear()
        self._metrics["eval"].clear()
        still_to_log = self.control.should_log and "loss" not in logs
        super().log(logs, start_time)
        # transformers takes any log line for the one that was due; a callback's own must not swallow it.
        self.control.should_log = still_to_log

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Log and save as transformers does, and only then evaluate: a kill during a long evaluation costs no step."""
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if self.state.global_step != self.evaluated_step and not self.stopped:
            self.evaluate_step()

    def evaluate_step(self) -> None:
        """Call `after_step` of every callback that has it, and do what they ask for."""
        step = self.evaluated_step = self.state.global_step
        for callback in self.callback_handler.callbacks:
            if hasattr(callback, "after_step"):
                cast(Any, callback).after_step(self.args, self.state, self.control)
        self._agree_on_control()
        if self.control.should_save and self.saved_step != step:
            self._save_checkpoint(cast(Any, self.model_wrapped), None)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)
        self.control.should_save = False

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Nothing where a resumed run was already at its end; transformers would take one step more."""
        if self.control.should_training_stop or self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _agree_on_control(self) -> None:
        """Every process does what one of them was told meanwhile: by a signal, or by a threshold of the evaluation."""
        control = self.control
        told = [control.should_training_stop, control.should_save, self.stop.received is not None]
        flags = torch.tensor(told, dtype=torch.float32, device=self.args.device)
        stop, save_now, signalled = (cast(torch.Tensor, self.accelerator.reduce(flags, "sum")) > 0).tolist()
        self.stop_agreed = self.stop_agreed or signalled
        control.should_training_stop, control.should_save = stop or signalled, save_now or signalled

    # ---- checkpoints

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """A checkpoint of this step that is whole or not there; older ones go only when it stands."""
        step = self.state.global_step
        if self.saved_step == step:
            return
        target = self.loop.checkpoints / save.checkpoint_name(step)
        details = {**self.identity.as_details(), "step": step}
        write_together(self.accelerator, target, self._fill_checkpoint, details, state_bytes(self.base))
        self.saved_step = step
        if self.args.should_save:
            save.rotate(self.loop.checkpoints, self.loop.keep)

    def _fill_checkpoint(self, folder: Path) -> None:
        """Everything a run needs to go on bit for bit. Run by every process."""
        self.save_model(str(folder), _internal_call=True)
        self._save_optimizer_and_scheduler(str(folder))
        self._save_scaler(str(folder))
        self._save_rng_state(str(folder))
        sums_2C = self.accelerator.reduce(self.meter.sums_2C, "sum")
        if not self.args.should_save:
            return
        state = {
            "meter": self.meter.state(sums_2C),  # pyright: ignore[reportArgumentType]
            "spikes": self.spikes.state(),
            "callbacks": {type(callback).__name__: callback.state_dict() for callback in self._stateful_callbacks()},
        }
        (folder / LOOP_STATE).write_text(json.dumps(state), encoding="utf-8")
        self.state.save_to_json(str(folder / TRAINER_STATE))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Weights in their own format, the vocabulary map beside them, and nothing pickled."""
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

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            load_weights(self.base, Path(resume_from_checkpoint))

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
            state = json.loads((Path(resume_from_checkpoint) / LOOP_STATE).read_text(encoding="utf-8"))
            self.meter.restore(state["meter"], self.args.should_save)
            self.spikes.restore(state["spikes"])
            for callback in self._stateful_callbacks():
                if type(callback).__name__ in state["callbacks"]:
                    callback.load_state_dict(state["callbacks"][type(callback).__name__])
            self.saved_step = self.state.global_step
        return progress

    def _stateful_callbacks(self) -> list[Any]:
        return [callback for callback in self.callback_handler.callbacks if hasattr(callback, "load_state_dict")]


class _StepEvents(TrainerCallback):
    """Ends the run after a step in which SIGTERM or Ctrl-C came, with a checkpoint. A resumed run first evaluates the
    step that it begins at: what broke it off may have kept it from doing so."""

    def __init__(self, trainer: CounterpointTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step > 0:
            self.trainer.evaluate_step()

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        if self.trainer.asked_to_stop:
            control.should_save = True
            control.should_training_stop = True
