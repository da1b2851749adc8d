"""A gpt-oss GGUF with the real vocabulary and one layer of zeros: llama-server renders and tokenizes with it.

python tests/golden/served/tiny_gguf.py LLAMA_CPP/gguf-py TOKENIZER_JSON TEMPLATE OUT.gguf
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

_WIDTH, _HEADS, _HEAD, _EXPERTS = 32, 2, 32, 2


def main() -> None:
    package, tokenizer, template, out = sys.argv[1:]
    sys.path.insert(0, package)
    import gguf  # of llama.cpp's own sources

    written = gguf.GGUFWriter(out, "gpt-oss")
    written.add_name("tiny")
    written.add_context_length(131072)
    written.add_embedding_length(_WIDTH)
    written.add_block_count(1)
    written.add_feed_forward_length(_WIDTH)
    written.add_expert_feed_forward_length(_WIDTH)
    written.add_head_count(_HEADS)
    written.add_head_count_kv(_HEADS)
    written.add_key_length(_HEAD)
    written.add_value_length(_HEAD)
    written.add_rope_dimension_count(_HEAD)
    written.add_rope_freq_base(150000.0)
    written.add_layer_norm_rms_eps(1e-5)
    written.add_sliding_window(128)
    written.add_expert_count(_EXPERTS)
    written.add_expert_used_count(1)
    tokens = _add_vocabulary(written, gguf, json.loads(Path(tokenizer).read_text(encoding="utf-8")))
    written.add_chat_template(Path(template).read_text(encoding="utf-8"))
    inner = _HEADS * _HEAD
    shapes = {
        "token_embd.weight": (tokens, _WIDTH),
        "output_norm.weight": (_WIDTH,),
        "output.weight": (tokens, _WIDTH),
        "blk.0.attn_norm.weight": (_WIDTH,),
        "blk.0.post_attention_norm.weight": (_WIDTH,),
        **{f"blk.0.attn_{name}.weight": (inner, _WIDTH) for name in "qkv"},
        **{f"blk.0.attn_{name}.bias": (inner,) for name in "qkv"},
        "blk.0.attn_output.weight": (_WIDTH, inner),
        "blk.0.attn_output.bias": (_WIDTH,),
        "blk.0.attn_sinks.weight": (_HEADS,),
        "blk.0.ffn_gate_inp.weight": (_EXPERTS, _WIDTH),
        "blk.0.ffn_gate_inp.bias": (_EXPERTS,),
        **{f"blk.0.ffn_{name}_exps.weight": (_EXPERTS, _WIDTH, _WIDTH) for name in ("gate", "up", "down")},
        **{f"blk.0.ffn_{name}_exps.bias": (_EXPERTS, _WIDTH) for name in ("gate", "up", "down")},
    }
    for name, shape in shapes.items():
        written.add_tensor(name, np.zeros(shape, np.float32))
    written.write_header_to_file()
    written.write_kv_data_to_file()
    written.write_tensors_to_file()
    written.close()


def _add_vocabulary(written: object, gguf: object, tokenizer: dict[str, dict[str, object]]) -> int:
    model = tokenizer["model"]
    ids: dict[str, int] = {**model["vocab"]}  # pyright: ignore
    types = dict.fromkeys(ids.values(), gguf.TokenType.NORMAL)  # pyright: ignore
    for added in tokenizer["added_tokens"]:
        ids[added["content"]] = added["id"]  # pyright: ignore
        types[added["id"]] = gguf.TokenType.CONTROL  # pyright: ignore
    names = {id_: name for name, id_ in ids.items()}
    size = max(names) + 1
    written.add_tokenizer_model("gpt2")  # pyright: ignore
    written.add_tokenizer_pre("gpt-4o")  # pyright: ignore
    written.add_token_list([names.get(i, f"[PAD{i}]") for i in range(size)])  # pyright: ignore
    written.add_token_types([types.get(i, gguf.TokenType.UNUSED) for i in range(size)])  # pyright: ignore
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]  # pyright: ignore
    written.add_token_merges(merges)  # pyright: ignore
    written.add_bos_token_id(199998)  # pyright: ignore
    written.add_eos_token_id(200002)  # pyright: ignore
    written.add_add_bos_token(False)  # pyright: ignore
    return size


main()
