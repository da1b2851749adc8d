"""Tree rows against one example a turn: the same conversations, losses and gradients, in fewer tokens and less time.

    python benchmarks/tree.py                    # CPU: made-up conversations of 5, 10 and 20 turns
    python benchmarks/tree.py --shape agent --turns 20 --rounds 3
    python benchmarks/tree.py --file FILE        # real ones: what tree rows save on data of your own

FILE is any file that Counterpoint reads; its conversations are taken in three groups, of about 5, 10 and 20 turns.
Made-up ones (benchmarks/workload.py) have two shapes. `chat`: a short opening, questions of 8 to 80 words,
thinking of 20 to 120, answers of 20 to 120. `agent`: an opening with a policy and tools, short questions, a call with
a long result in six of ten turns; its lengths are those of tau-bench's airline trajectories (medians in tokens: opening
1,316, question 20, call 19, result 233, answer 57), which have no thinking, and for the thinking those of gpt-oss-20b's
turns in an agent (median 14, mean 37). Every turn is trained in the context that it is sampled from, so earlier
thinking is gone from it: the tokens saved are the shared history, and the most that time can win. `turns`: one row for
each turn, batched to `--tokens` a forward pass, as a trainer without trees does it. `tree`: one row a conversation.
Both take forward and backward passes of the same model on the lean path.

What attention and the head weigh in a step decides what saved tokens are worth, so the model has gpt-oss-20b's
proportions and not its sizes. The head is 17 % of the active parameters (there 16 %; ids are folded into its 4096
rows). A (query, key) pair costs, over all full layers, 6e-5 of a token's other work: 3 layers of 2 heads of 32 for 6.1
million active parameters. In gpt-oss-20b it is 2.7e-5 (12 layers of 64 heads of 64, 3.6 billion), so attention still
weighs twice as much here.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from workload import _TOOLS, _text

ROWS = 4096
SHAPE = {
    "num_hidden_layers": 6, "num_local_experts": 8, "num_experts_per_tok": 4, "hidden_size": 256,
    "intermediate_size": 256, "head_dim": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": ROWS,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", help="conversations of a file, grouped by turns, in place of made-up ones")
    parser.add_argument("--shape", choices=("chat", "agent", "both"), default="both")
    parser.add_argument("--turns", default="5,10,20")
    parser.add_argument("--conversations", type=int, default=2, help="at most so many of each kind")
    parser.add_argument(
        "--tokens", type=int, default=4096, help="most tokens of a forward pass, where rows are shorter"
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    import torch

    torch.set_num_threads(args.threads)
    model = lora_model()
    print(f"{'conversations':<14}{'turns':>6}{'tokens, turns':>15}{'tree':>9}{'fewer':>8}{'CPU s, turns':>14}"
          f"{'tree':>9}{'faster':>8}{'loss':>10}{'|grad|, turns':>15}{'tree':>10}")  # fmt: skip
    for name, conversations in from_file(args) if args.file else made_up(args):
        print(compared(model, name, conversations, args), flush=True)


Conversations = list[list[Any]]
"""The training examples of some conversations, one a turn."""


def made_up(args: argparse.Namespace) -> Iterator[tuple[str, Conversations]]:
    for shape in ("chat", "agent") if args.shape == "both" else (args.shape,):
        for turns in map(int, args.turns.split(",")):
            yield f"{args.conversations} {shape}", [examples_of(turns, n, shape) for n in range(args.conversations)]


def from_file(args: argparse.Namespace) -> Iterator[tuple[str, Conversations]]:
    """The first conversations of the file with about 5 (4 to 6), 10 (8 to 12) and 20 (16 to 25) turns."""
    from counterpoint.data.conversation import Conversation
    from counterpoint.data.formats.read import read_conversations
    from counterpoint.data.harmony.render import Renderer
    from counterpoint.data.harmony.vocabulary import load_vocabulary

    renderer = Renderer(load_vocabulary())
    groups: dict[range, Conversations] = {range(4, 7): [], range(8, 13): [], range(16, 26): []}
    for conversation in read_conversations([args.file]):
        examples = renderer.examples(conversation) if isinstance(conversation, Conversation) else []
        for turns, group in groups.items():
            if len(examples) in turns and len(group) < args.conversations:
                group.append(examples)
    for group in groups.values():
        if group:
            yield f"{len(group)} of file", group


def compared(model: Any, name: str, conversations: Conversations, args: argparse.Namespace) -> str:
    from counterpoint.data.layout.tree import tree_of

    ways: dict[str, list[list[Any]]] = {
        "turns": list(batches([tree_of([e]) for examples in conversations for e in examples], args.tokens)),
        "tree": [[tree_of(examples)] for examples in conversations],
    }
    found: dict[str, tuple[float, float, float]] = {}
    for way, rows in ways.items():
        step(model, rows[-1:])
        runs = [timed(lambda rows=rows: step(model, rows)) for _ in range(args.rounds)]
        found[way] = (statistics.median(seconds for seconds, _ in runs), *runs[0][1])
    tokens = {way: sum(len(row) for rows in found_rows for row in rows) for way, found_rows in ways.items()}
    (a, loss, norm), (b, tree_loss, tree_norm) = found["turns"], found["tree"]
    assert abs(loss - tree_loss) < 1e-4 * loss, (loss, tree_loss)
    turns = sum(map(len, conversations)) / len(conversations)
    return (
        f"{name:<14}{turns:>6.3g}{tokens['turns']:>15,}{tokens['tree']:>9,}{tokens['turns'] / tokens['tree']:>7.2f}x"
        f"{a:>14.2f}{b:>9.2f}{a / b:>7.2f}x{loss:>10.5f}{norm:>15.6f}{tree_norm:>10.6f}"
    )


def examples_of(turns: int, seed: int, shape: str = "chat") -> list[Any]:
    """The training examples of one made-up conversation: one a turn."""
    from counterpoint.data.formats.convert import convert
    from counterpoint.data.harmony.render import Renderer
    from counterpoint.data.harmony.vocabulary import load_vocabulary

    rng = random.Random(f"tree{turns}{seed}")
    conversation: Any = convert(agent_row(rng, turns) if shape == "agent" else chat_row(rng, turns))
    return list(Renderer(load_vocabulary()).examples(conversation))


def chat_row(rng: random.Random, turns: int) -> dict[str, Any]:
    messages: list[dict[str, Any]] = [{"role": "system", "content": _text(rng, 20, 120)}]
    for _ in range(turns):
        messages.append({"role": "user", "content": _text(rng, 8, 80)})
        messages.append({"role": "assistant", "thinking": _text(rng, 20, 120), "content": _text(rng, 20, 120)})
    return {"messages": messages}


def agent_row(rng: random.Random, turns: int) -> dict[str, Any]:
    def words(median: float, spread: float) -> str:
        count = max(1, min(400, round(rng.lognormvariate(math.log(median), spread))))
        return _text(rng, count, count)

    messages: list[dict[str, Any]] = [{"role": "system", "content": _text(rng, 860, 900)}]
    for _ in range(turns):
        messages.append({"role": "user", "content": words(16, 0.4)})
        if rng.random() < 0.6:
            arguments = json.dumps({"key": words(6, 0.9), "limit": rng.randint(1, 50)}, ensure_ascii=False)
            call = {
                "id": f"c{len(messages)}",
                "type": "function",
                "function": {"name": "lookup", "arguments": arguments},
            }
            messages.append({"role": "assistant", "thinking": words(11, 1.3), "tool_calls": [call]})
            messages.append(
                {"role": "tool", "tool_call_id": call["id"], "content": json.dumps({"found": words(176, 0.3)})}
            )
        messages.append({"role": "assistant", "thinking": words(11, 1.3), "content": words(45, 0.7)})
    return {"messages": messages, "tools": _TOOLS}


def batches(rows: Sequence[Any], tokens: int) -> Iterator[list[Any]]:
    """Rows of about one length together, so that little is padding; at most `tokens` of them with it."""
    held: list[Any] = []
    for row in sorted(rows, key=len):
        if held and (len(held) + 1) * len(row) > tokens:
            yield held
            held = []
        held.append(row)
    yield held


def lora_model() -> Any:
    import torch
    from transformers import GptOssConfig, GptOssForCausalLM

    from counterpoint.configs.model_section import LoraSettings, ModelSettings
    from counterpoint.train.adapters.attach import attach_lora
    from counterpoint.train.adapters.implementations import use_implementations

    torch.manual_seed(0)
    config = GptOssConfig(**SHAPE, router_aux_loss_coef=0.0, pad_token_id=0, eos_token_id=1)
    config._attn_implementation = "eager"
    model = attach_lora(GptOssForCausalLM(config), LoraSettings(rank=16, alpha=32))
    use_implementations(model, ModelSettings())
    return model.train()


def step(model: Any, found_rows: Sequence[list[Any]]) -> tuple[float, float]:
    """(loss, norm of the gradient) of one optimizer step's passes over all batches."""
    import torch

    from counterpoint.data.layout.collate import Collator
    from counterpoint.train.loop.loss import weighted_nll
    from counterpoint.train.model.attention_inputs import attention_inputs

    collate = Collator(lambda ids: ids % ROWS)
    total = sum(float(row.target_weight.sum()) for rows in found_rows for row in rows)
    model.zero_grad()
    loss = 0.0
    for rows in found_rows:
        batch = collate(rows)
        out = model(
            input_ids=batch["input_ids"], position_ids=batch["position_ids"], output_hidden_states=True,
            logits_to_keep=batch["input_ids"].new_empty(0), use_cache=False,
            **attention_inputs(model, batch["position_ids"], batch["subtree_end"]),
        )  # fmt: skip
        hidden = out.hidden_states[-1].flatten(0, 1).index_select(0, batch["target_index"])
        head = model.get_output_embeddings().weight
        part, _ = weighted_nll(hidden, head, batch["target_ids"], batch["target_weights"], total)
        part.backward()
        loss += float(part.detach())
    norms = [p.grad.double().square().sum() for p in model.parameters() if p.grad is not None]
    return loss, float(torch.stack(norms).sum().sqrt())


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


if __name__ == "__main__":
    main()
