"""gpt-oss's tokenizer as a Hugging Face folder, written from `o200k_base.tiktoken` by the standard library alone.

    python tokenizer.py FILE FOLDER [TEMPLATE.jinja]

FILE is the vocabulary, plain or gzipped; the folder also gets the `config.json` of gpt-oss-20b, which vLLM's render
server reads, and TEMPLATE as its chat template. No weights are needed: nothing here samples.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SHA256 = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"
SPECIAL = {
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
N_VOCAB = 201088
_WORD = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
SPLIT = "|".join(
    [
        f"{_WORD}*{_LOWER}+{_SHORT}",
        f"{_WORD}+{_LOWER}*{_SHORT}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
CONFIG = {
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "dtype": "bfloat16",
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_hidden_layers": 24,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "num_local_experts": 32,
    "num_experts_per_tok": 4,
    "experts_per_token": 4,
    "vocab_size": N_VOCAB,
    "sliding_window": 128,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05,
    "swiglu_limit": 7.0,
    "attention_bias": True,
    "rope_theta": 150000,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 150000,
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "original_max_position_embeddings": 4096,
        "truncate": False,
    },
    "tie_word_embeddings": False,
    "eos_token_id": 200002,
    "pad_token_id": 199999,
}
GENERATION = {
    "bos_token_id": 199998,
    "do_sample": True,
    "eos_token_id": [200002, 199999, 200012],
    "pad_token_id": 199999,
}


def read_vocabulary(path: Path) -> dict[bytes, int]:
    """Byte sequence -> rank. ValueError where the file is not o200k."""
    raw = path.read_bytes()
    raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    if hashlib.sha256(raw).hexdigest() != SHA256:
        raise ValueError(f"{path}: is not o200k_base.tiktoken (SHA-256 {SHA256[:12]}...)")
    pairs = (line.split() for line in raw.splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in pairs}


def printable_bytes() -> list[str]:
    """The character that stands for each byte in a Hugging Face vocabulary."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


def tokenizer_json(ranks: dict[bytes, int]) -> dict[str, Any]:
    shown = printable_bytes()

    def spelled(token: bytes) -> str:
        return "".join(shown[byte] for byte in token)

    merges: list[list[str]] = []
    for token in sorted(ranks, key=lambda token: ranks[token]):
        halves = ((token[:at], token[at:]) for at in range(1, len(token)))
        known = [(ranks[a], ranks[b], a, b) for a, b in halves if a in ranks and b in ranks]
        merges += [[spelled(a), spelled(b)] for _, _, a, b in sorted(known)]
    added = [
        {
            "id": id_,
            "content": SPECIAL.get(id_, f"<|reserved_{id_}|>"),
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for id_ in range(199998, N_VOCAB)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": {**byte_level, "trim_offsets": False},
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {spelled(token): rank for token, rank in ranks.items()},
            "merges": merges,
        },
    }


def write_folder(vocabulary: Path, folder: Path, template: Path | None = None) -> None:
    """Raises ValueError where `vocabulary` is another file."""
    ranks = read_vocabulary(vocabulary)
    folder.mkdir(parents=True, exist_ok=True)
    plain = b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items())
    (folder / "o200k_base.tiktoken").write_bytes(plain)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL[199998],
        "eos_token": SPECIAL[200002],
        "pad_token": SPECIAL[199999],
        "model_max_length": 131072,
    }
    if template is not None:
        (folder / "chat_template.jinja").write_text(template.read_text("utf-8"), "utf-8")
    for name, content in (
        ("tokenizer_config.json", config),
        ("config.json", CONFIG),
        ("generation_config.json", GENERATION),
        ("tokenizer.json", tokenizer_json(ranks)),
    ):
        (folder / name).write_text(json.dumps(content, ensure_ascii=False), "utf-8")


def main(arguments: Sequence[str]) -> int:
    if len(arguments) not in (2, 3):
        print("usage: python tokenizer.py FILE FOLDER [TEMPLATE.jinja]", file=sys.stderr)
        return 2
    write_folder(Path(arguments[0]), Path(arguments[1]), Path(arguments[2]) if len(arguments) == 3 else None)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
