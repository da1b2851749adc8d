"""A teacher that rates the tokens that the model sampled itself: on-policy distillation as a reward for each token.

The expectation of log p_model - log p_teacher over the model's own samples is the reverse divergence from the teacher;
its gradient, token by token, is that of a policy with the advantage log p_teacher - log p_model.

Legend: B rows, S tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from counterpoint.configs.rl_section import TeacherSettings
from counterpoint.train.adapters.implementations import use_implementations
from counterpoint.train.checkpoints.start import put_start, start_of
from counterpoint.train.model.load import LoadedModel, load_model


@dataclass(frozen=True)
class Teacher:
    """A frozen model and the weight of its rating."""

    loaded: LoadedModel
    weight: float

    @property
    def model(self) -> Any:
        return self.loaded.model

    def rows(self, rows_BS: torch.Tensor, student: LoadedModel) -> torch.Tensor:
        """The model's rows as the teacher's. ModelError for a token that the teacher does not have."""
        return self.loaded.vocabulary_map.rows(student.vocabulary_map.ids(rows_BS))


def load_teacher(settings: TeacherSettings, device: torch.device) -> Teacher:
    """The teacher, frozen."""
    assert settings.model is not None
    model = start_of(settings.model)
    loaded = put_start(load_model(model, device), model)
    if model.adapter is not None:
        loaded = loaded.with_model(loaded.model.get_base_model())  # its modules hold the adapter
    use_implementations(loaded.model, model)
    loaded.model.requires_grad_(False).eval()
    return Teacher(loaded, settings.weight)
