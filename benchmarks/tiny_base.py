"""The embedded tiny model: its files from the example data, and whether its run file makes it again.

    python benchmarks/tiny_base.py map                   # config.json and vocabulary_map.json
    python benchmarks/tiny_base.py weights CHECKPOINT    # the weights of a checkpoint of sft/tiny_base
    python benchmarks/tiny_base.py check                 # train sft/tiny_base again, compare with the shipped weights

`map` and `weights` write into train/model/tiny_base. `check` takes ten minutes of one core: it trains in a temporary
folder and samples both models greedily on prompts that they never saw. The new one must be as often right in form, and
as often wrong in number, as the shipped one; it ends with 1 where it is not.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from counterpoint.configs.data_section import RenderSettings
from counterpoint.configs.errors import ModelError
from counterpoint.configs.model_section import ModelSettings
from counterpoint.data.conversation import EFFORTS, Conversation
from counterpoint.data.formats.read import read_conversations
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.vocabulary import SPECIAL_NAMES, byte_ids, load_vocabulary
from counterpoint.recipes.cli import main as counterpoint
from counterpoint.train.model.embedded import tiny_folder
from counterpoint.train.model.load import load_model
from counterpoint.train.model.tiny import WEIGHTS_FILE, tiny_config
from counterpoint.train.model.vocabulary_map import VocabularyMap

EXAMPLES = ("quickstart", "quickstart_eval", "tiny_base")
HIGHEST_LOSS = 0.12
LARGEST_DIFFERENCE = {"channel_correct": 0.2, "right_answers": 0.25}


def needed_ids(texts: Iterable[Sequence[int]]) -> VocabularyMap:
    """The map that holds every id of `texts`, the specials, and the 256 single bytes (so that any text goes in)."""
    vocabulary = load_vocabulary()
    ids = {*byte_ids(vocabulary), *SPECIAL_NAMES}
    for text in texts:
        ids.update(text)
    return VocabularyMap.from_ids(ids)


def example_ids() -> Iterator[Sequence[int]]:
    """Ids of everything that the example data trains or asks, at every effort, and of the numbers below 1000."""
    renderer = Renderer(load_vocabulary(), RenderSettings(serving="counterpoint_0_1"))
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
    target = folder / WEIGHTS_FILE
    weights = {name: tensor.contiguous() for name, tensor in loaded.model.state_dict().items()}
    save_file(weights, target, metadata={"format": "pt"})
    return target


def check(folder: Path) -> list[str]:
    """Train the base again in `folder`, print both models' rates; what is not as it should be."""
    os.chdir(folder)
    assert counterpoint(["train", "sft/tiny_base", "eval.temperature=0", "output=again"]) == 0
    (run,) = (folder / "again").iterdir()
    loss = last_line(run / "metrics.jsonl")["loss"]
    again = last_line(run / "eval" / "metrics.jsonl")
    assert counterpoint(["train", "quickstart", "train.steps=1", "eval.at_end=false", "output=shipped"]) == 0
    (run,) = (folder / "shipped").iterdir()
    shipped = json.loads((run / "eval" / "metrics.jsonl").read_text().splitlines()[0])
    assert (shipped["who"], shipped["step"]) == ("base", 0)
    print(f"loss {loss:.3f} (at most {HIGHEST_LOSS})")
    wrong = [] if loss < HIGHEST_LOSS else ["loss"]
    for name, most in LARGEST_DIFFERENCE.items():
        print(f"{name}: shipped {shipped[name]:.3f}, made again {again[name]:.3f} (apart by at most {most})")
        if abs(again[name] - shipped[name]) >= most:
            wrong += [name]
    return wrong


def last_line(file: Path) -> dict[str, float]:
    return json.loads(file.read_text().splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("map", help="write config.json and vocabulary_map.json from the example data")
    commands.add_parser("weights", help="take over the weights of a checkpoint").add_argument("checkpoint", type=Path)
    commands.add_parser("check", help="train the base again and compare it with the shipped one")
    args = parser.parse_args()
    if args.command == "map":
        print(f"{tiny_folder()}: {write_map(tiny_folder()).n_rows} rows")
    elif args.command == "weights":
        print(take_weights(args.checkpoint, tiny_folder()))
    else:
        with tempfile.TemporaryDirectory() as folder:
            if wrong := check(Path(folder)):
                print(f"not as the shipped one: {', '.join(wrong)}")
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
