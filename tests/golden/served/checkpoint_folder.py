"""A folder that servers take for a gpt-oss checkpoint: configuration and tokenizer, no weights."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path

_FILES = Path(__file__).parents[3] / "data" / "harmony" / "files"
_SPECIAL = {
    199998: "<|startoftext|>",
    199999: "<|endoftext|>",
    200002: "<|return|>",
    200003: "<|constrain|>",
    200005: "<|channel|>",
    200006: "<|start|>",
    200007: "<|end|>",
    200008: "<|message|>",
    200012: "<|call|>",
    200018: "<|endofprompt|>",
}
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_ENDING = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_PATTERN = "|".join(
    [
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_ENDING}",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_ENDING}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)


def write_o200k(folder: Path) -> None:
    """The vocabulary where openai-harmony finds it by `TIKTOKEN_ENCODINGS_BASE`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "o200k_base.tiktoken").write_bytes(gzip.decompress((_FILES / "o200k_base.tiktoken.gz").read_bytes()))


def write_checkpoint_folder(folder: Path) -> None:
    """config.json, generation_config.json and a fast tokenizer, as gpt-oss-20b has them."""
    from transformers import GptOssConfig

    folder.mkdir(parents=True, exist_ok=True)
    _write_tokenizer(folder)
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|startoftext|>", "eos_token": "<|return|>"}
    named |= {"pad_token": "<|endoftext|>", "model_max_length": 131072}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    stops = {"bos_token_id": 199998, "do_sample": True, "eos_token_id": [200002, 199999, 200012]}
    (folder / "generation_config.json").write_text(json.dumps({**stops, "pad_token_id": 199999}))
    config = GptOssConfig()
    config.architectures = ["GptOssForCausalLM"]
    config.dtype = "bfloat16"
    config.save_pretrained(folder)


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

    ranks: dict[bytes, int] = {}
    for line in gzip.decompress((_FILES / "o200k_base.tiktoken.gz").read_bytes()).splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    merges: list[tuple[int, int, int, bytes, bytes]] = []
    for token, rank in ranks.items():
        for i in range(1, len(token)):
            left, right = token[:i], token[i:]
            if left in ranks and right in ranks:
                merges.append((rank, ranks[left], ranks[right], left, right))
    merges.sort()
    text = _byte_texts()

    def written(token: bytes) -> str:
        return "".join(text[byte] for byte in token)

    pairs = [(written(left), written(right)) for _, _, _, left, right in merges]
    vocabulary = {written(token): rank for token, rank in ranks.items()}
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs, ignore_merges=True))
    split = pre_tokenizers.Split(Regex(_PATTERN), "isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    special = [_SPECIAL.get(i, f"<|reserved_{i}|>") for i in range(199998, 201088)]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    assert tokenizer.token_to_id("<|start|>") == 200006
    tokenizer.save(str(folder / "tokenizer.json"))


def _byte_texts() -> dict[int, str]:
    """The characters that a byte-level tokenizer writes for bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{b: chr(b) for b in printable}, **{b: chr(256 + i) for i, b in enumerate(others)}}
