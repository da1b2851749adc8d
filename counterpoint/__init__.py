"""Fine-tuning and post-training for gpt-oss: the names that a notebook or another framework wants.

    import counterpoint as cp

    for row in cp.read_conversations("my.jsonl"):  # rows of any format
        ...
    renderer = cp.Renderer(cp.load_vocabulary())  # token ids with loss weights, and the prompt of inference
    completion = cp.parse_completion(ids)  # a sampled completion by channel, strictly checked
    model = cp.load_model("openai/gpt-oss-20b")

Every name is loaded when it is first used: `import counterpoint` alone imports no torch. docs/python.md shows each name
in code. What is not listed here may change between versions.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from counterpoint.configs.model_section import LoraSettings as LoraSettings
    from counterpoint.configs.model_section import ModelSettings as ModelSettings
    from counterpoint.data.conversation import Conversation as Conversation
    from counterpoint.data.conversation import Message as Message
    from counterpoint.data.conversation import Tool as Tool
    from counterpoint.data.formats.read import read_conversations as read_conversations
    from counterpoint.data.harmony.checker import check as check
    from counterpoint.data.harmony.completion import parse_completion as parse_completion
    from counterpoint.data.harmony.render import Renderer as Renderer
    from counterpoint.data.harmony.vocabulary import load_vocabulary as load_vocabulary
    from counterpoint.data.show.explain import explain as explain
    from counterpoint.train.adapters.attach import attach_lora as attach_lora
    from counterpoint.train.adapters.implementations import use_implementations as use_implementations
    from counterpoint.train.checkpoints.find import open_checkpoint as open_checkpoint
    from counterpoint.train.episodes.environment import Context as Context
    from counterpoint.train.episodes.environment import Done as Done
    from counterpoint.train.episodes.environment import Environment as Environment
    from counterpoint.train.episodes.environment import ToolError as ToolError
    from counterpoint.train.export.exporter import export as export
    from counterpoint.train.model.load import load_model as load_model
    from counterpoint.train.sampling.rollout import Rollout as Rollout
    from counterpoint.train.sampling.sample import Sampler as Sampler
    from counterpoint.train.sampling.truncation import Truncation as Truncation

    __version__: str

_HOMES = {
    "LoraSettings": "configs.model_section",
    "ModelSettings": "configs.model_section",
    "Conversation": "data.conversation",
    "Message": "data.conversation",
    "Tool": "data.conversation",
    "read_conversations": "data.formats.read",
    "check": "data.harmony.checker",
    "parse_completion": "data.harmony.completion",
    "Renderer": "data.harmony.render",
    "load_vocabulary": "data.harmony.vocabulary",
    "explain": "data.show.explain",
    "attach_lora": "train.adapters.attach",
    "use_implementations": "train.adapters.implementations",
    "open_checkpoint": "train.checkpoints.find",
    "Context": "train.episodes.environment",
    "Done": "train.episodes.environment",
    "Environment": "train.episodes.environment",
    "ToolError": "train.episodes.environment",
    "export": "train.export.exporter",
    "load_model": "train.model.load",
    "Rollout": "train.sampling.rollout",
    "Sampler": "train.sampling.sample",
    "Truncation": "train.sampling.truncation",
}
__all__ = ["__version__", *_HOMES]  # noqa: PLE0604  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("counterpoint")
    elif name in _HOMES:
        value = getattr(import_module(f"counterpoint.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module 'counterpoint' has no attribute '{name}'")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
