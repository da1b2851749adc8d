"""The embedded tiny gpt-oss: the real architecture at a small size, real o200k ids outside, a compact range inside.

Its folder `tiny_base` is package data: `config.json`, `vocabulary_map.json`, `model.safetensors`. The first two are
written by `python -m counterpoint.train.model.tiny map`, from the example data; the weights come from a run of
`configs/sft/tiny_base.yaml`, and `python -m counterpoint.train.model.tiny weights CHECKPOINT` takes them over.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from transformers import GptOssConfig, GptOssForCausalLM

from counterpoint.configs.data_section import RenderSettings
from counterpoint.configs.errors import ModelError
from counterpoint.configs.model_section import ModelSettings
from counterpoint.data.conversation import EFFORTS, Conversation
from counterpoint.data.formats.read import read_conversations
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.vocabulary import SPECIAL_NAMES, byte_ids, load_vocabulary
from counterpoint.train.model.embedded import tiny_folder
from counterpoint.train.model.load import LoadedModel, finish_model, load_model
from counterpoint.train.model.vocabulary_map import VocabularyMap

WEIGHTS_FILE = "model.safetensors"
EXAMPLES = ("quickstart", "quickstart_eval", "tiny_base")


def tiny_config(n_rows: int) -> GptOssConfig:
    """Shape of the tiny model: one sliding and one full layer, hidden 64, 4 experts of which 2 are active."""
    return GptOssConfig(
        vocab_size=n_rows,
        num_hidden_layers=2,
        hidden_size=64,
        intermediate_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=32,
        initializer_range=0.1,
        max_position_embeddings=131072,
        router_aux_loss_coef=0.0,
        layer_types=["sliding_attention", "full_attention"],
    )


def random_tiny(seed: int = 0, vocabulary_ids: Iterable[int] | None = None) -> LoadedModel:
    """A tiny model with random weights (float32, CPU); `vocabulary_ids` None takes the embedded model's.

    The global random state is as before.
    """
    mapping = VocabularyMap.load(tiny_folder()) if vocabulary_ids is None else VocabularyMap.from_ids(vocabulary_ids)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GptOssForCausalLM(tiny_config(mapping.n_rows))
    return finish_model(model, mapping, f"random tiny model, seed {seed}")


def needed_ids(texts: Iterable[Sequence[int]]) -> VocabularyMap:
    """The map that holds every id of `texts`, the specials, and the 256 single bytes (so that any text goes in)."""
    vocabulary = load_vocabulary()
    ids = {*byte_ids(vocabulary), *SPECIAL_NAMES}
    for text in texts:
        ids.update(text)
    return VocabularyMap.from_ids(ids)


def example_ids() -> Iterator[Sequence[int]]:
    """Ids of everything that the example data trains or asks, at every effort, and of the numbers below 1000."""
    renderer = Renderer(load_vocabulary(), RenderSettings())
    for conversation in read_conversations([f"example:{name}" for name in EXAMPLES]):
        assert isinstance(conversation, Conversation)
        yield from (renderer.prompt(conversation, effort) for effort in EFFORTS)
        yield from (example.ids.tolist() for example in renderer.examples(conversation))
    yield from (renderer.vocabulary.encode(str(n)) for n in range(1000))


def write_map(folder: Path) -> VocabularyMap:
    """Write `config.json` and `vocabulary_map.json` of the embedded model into `folder`."""
    mapping = needed_ids(example_ids())
    folder.mkdir(parents=True, exist_ok=True)
    mapping.save(folder)
    config = tiny_config(mapping.n_rows)
    config.architectures = ["GptOssForCausalLM"]
    config.dtype = torch.float32
    config.save_pretrained(folder)
    return mapping


def take_weights(checkpoint: Path, folder: Path) -> Path:
    """Copy a checkpoint's weights into the embedded model. ModelError where its rows are not the map's."""

    loaded = load_model(ModelSettings(name=str(checkpoint)))
    expected = VocabularyMap.load(folder).n_rows
    if loaded.vocabulary_map.n_rows != expected:
        raise ModelError(f"{checkpoint}: {loaded.vocabulary_map.n_rows} rows, the map has {expected}: train it again")
    from safetensors.torch import save_file

    target = folder / WEIGHTS_FILE
    weights = {name: tensor.contiguous() for name, tensor in loaded.model.state_dict().items()}
    save_file(weights, target, metadata={"format": "pt"})
    return target


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m counterpoint.train.model.tiny", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("map", help="write config.json and vocabulary_map.json from the example data")
    commands.add_parser("weights", help="take over the weights of a checkpoint").add_argument("checkpoint", type=Path)
    args = parser.parse_args()
    folder = tiny_folder()
    if args.command == "map":
        print(f"{folder}: {write_map(folder).n_rows} rows")
    else:
        print(take_weights(args.checkpoint, folder))


if __name__ == "__main__":
    main()
