"""How much memory a training step takes at its worst moment, from the sizes of what the lean path holds.

Legend: N tokens of a forward pass (rows x longest row), T trained positions, H hidden, Q query width, G key width,
K experts a token, R = N K routed rows, I intermediate, V vocabulary, r rank. All figures are bytes.

Each term below is a tensor in `train/model/attention.py`, `train/model/norm.py`, `train/adapters/expert_math.py`,
`train/loop/loss.py`, `train/loop/log_probs.py` or `train/sampling/kv_cache.py`.
Live bytes follow the passes, so the largest sum is at one of these moments: the loss, the backward pass of the last
layer or of the first, the optimizer's step, or, where the trainer samples, the longest of the rollouts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from counterpoint.train.adapters.expert_math import ROWS_AT_A_TIME, UNPACKED_EXPERTS
from counterpoint.train.model.cached_attention import DEFAULT_BATCH_TOKENS
from counterpoint.train.plan.shape import Shape

MIB = 1 << 20
CUDA_CONTEXT = 900 * MIB
"""Driver, kernels and libraries of one process on a GPU: about this much, which torch does not count."""
FRAGMENTATION = 0.03
"""What a GPU's allocator holds and cannot use, as a share of activations."""
LOGIT_BYTES = {"cpu": 128 * MIB, "cuda": 1024 * MIB}
WIDENED_ROWS = 8192


@dataclass(frozen=True)
class Batch:
    """One forward pass of one process: rows, tokens of the longest, and positions with a target over all rows.

    sequences, keys: of all rows, as a flash kernel is given them (`flash_sequences`); 0 for plain rows. longest: of
    rows that are packed to `width`, tokens of the longest rollout with its prompt, or of the longest pair.
    """

    rows: int
    width: int
    targets: int
    sequences: int = 0
    keys: int = 0
    longest: int = 0

    @property
    def tokens(self) -> int:
        return self.rows * self.width


@dataclass(frozen=True)
class Plan:
    """What decides the memory of a step besides the shape and the batch.

    itemsize: bytes of a weight that is not packed. wide: bytes in which products run (4 on a CPU without AMX).
    processes: of the whole run; sharded: FSDP2. accumulates: gradients stay in memory during the next forward pass.
    offloads: what is computed again from waits in host memory. recompute_experts: the experts' first projection is not
    kept. lean_*: the paths of section `model`. kernels: those of our own, on a GPU. log_probs: the loss is one of
    log-probabilities and entropies (learning from rewards and from pairs). beside: bytes of other models in memory, a
    reference or a teacher. sampled_rows, sampled_width: rollouts that the trainer samples at a time, and tokens of the
    longest.
    """

    device: str
    itemsize: int
    wide: int
    weights: int
    optimizer_bytes: float = 8.0
    checkpointing: bool = False
    offloads: bool = False
    recompute_experts: bool = False
    accumulates: bool = False
    processes: int = 1
    sharded: bool = False
    lean_attention: bool = True
    lean_experts: bool = True
    lean_norms: bool = True
    lean_loss: bool = True
    packed: bool = False
    kernels: bool = False
    log_probs: bool = False
    beside: int = 0
    sampled_rows: int = 0
    sampled_width: int = 0


@dataclass(frozen=True)
class Memory:
    """Bytes by component at the worst moment of a step, on one process."""

    weights: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    loss: int
    other: int
    moment: str

    @property
    def total(self) -> int:
        return sum(size for _, size in self.parts())

    def parts(self) -> Iterator[tuple[str, int]]:
        for name in ("weights", "adapter", "gradients", "optimizer", "activations", "loss", "other"):
            yield name, getattr(self, name)


def peak(shape: Shape, batch: Batch, plan: Plan) -> Memory:
    """Memory of the worst moment."""
    return max(moments(shape, batch, plan), key=lambda memory: memory.total)


def moments(shape: Shape, batch: Batch, plan: Plan) -> list[Memory]:
    """Memory at each moment that can be the worst."""
    one_layer, inputs = layer_bytes(shape, batch, plan), batch.tokens * shape.hidden * plan.itemsize
    saved = shape.layers * inputs if plan.checkpointing else shape.layers * one_layer
    waiting = saved  # of the backward pass
    if plan.offloads:
        # On the device: the newest input, in the backward pass the next one on its way, and those that stay.
        stay = (shape.layers if plan.device == "cpu" else 0 if shape.full else 1) * inputs
        saved, waiting = stay + inputs, stay + 2 * inputs
    again = one_layer if plan.checkpointing else 0
    # Its input, and the gradient of the embeddings' output, which checkpointing has require one.
    first = 2 * inputs if plan.checkpointing else 0
    top = _last_norm(shape, batch, plan)
    # When attention's turn comes, what the experts saved is gone.
    attention = _attention_backward(shape, batch, plan) - _expert_bytes(shape, batch, plan)
    backward = max(_experts_backward(shape, batch, plan), attention)
    gradients = _gradients(shape, plan)
    base = Memory(
        plan.weights // (plan.processes if plan.sharded else 1) + _gathered(shape, plan),
        0 if shape.full else shape.trainable * 4 // (plan.processes if plan.sharded else 1),
        0,
        int(shape.trainable * plan.optimizer_bytes) // (plan.processes if plan.sharded else 1),
        0, 0, _other(shape, plan), "",
    )  # fmt: skip
    held = gradients if plan.accumulates else 0
    last = gradients // max(1, shape.layers) if not plan.accumulates else gradients
    found = [
        replace(base, gradients=held, activations=saved + top, loss=_loss(shape, batch, plan), moment="the loss"),
        replace(
            base, gradients=last, activations=waiting + again + backward + 2 * inputs,
            moment="the backward pass of the last layer",
        ),
        replace(
            base, gradients=gradients, activations=one_layer + backward + 2 * inputs + first,
            moment="the backward pass of the first layer",
        ),
        replace(base, gradients=gradients, activations=_step(shape, plan), moment="the optimizer's step"),
        replace(base, activations=_sampling(shape, plan), moment="the sampling of rollouts"),
    ]  # fmt: skip
    if plan.device == "cuda":
        found = [replace(m, other=m.other + int(FRAGMENTATION * (m.activations + m.loss))) for m in found]
    return found


def pinned_bytes(shape: Shape, batch: Batch, plan: Plan) -> int:
    """Pinned host memory of a process for activation offload. torch's allocator of it rounds up to a power of two."""
    if not plan.offloads or plan.device != "cuda":
        return 0
    inputs = batch.tokens * shape.hidden * plan.itemsize
    return (shape.layers - (not shape.full)) * (1 << (inputs - 1).bit_length())


def layer_bytes(shape: Shape, batch: Batch, plan: Plan) -> int:
    """What one decoder layer keeps from its forward pass for its backward pass."""
    norms = 2 * _norm_bytes(shape, batch, plan)
    return norms + _attention_bytes(shape, batch, plan) + _expert_bytes(shape, batch, plan)


def _norm_bytes(shape: Shape, batch: Batch, plan: Plan) -> int:
    """A norm's input, which is the residual stream: as it is, or in float32 as transformers keeps it."""
    return batch.tokens * (shape.hidden * (plan.itemsize if plan.lean_norms else 4) + 4)


def _attention_bytes(shape: Shape, batch: Batch, plan: Plan) -> int:
    n, a, query, key = batch.tokens, plan.itemsize, shape.query_width, shape.key_width
    kept = n * a * (shape.hidden + query + 2 * key) + 4 * n * shape.attention_rank * a
    if plan.lean_attention:
        return kept + n * query * a + n * shape.heads * 4
    scores = batch.rows * shape.heads * batch.width * (batch.width + 1)
    # Keys and values repeated for every head, and the probabilities.
    return kept + n * a * 3 * query + scores * a


def _expert_bytes(shape: Shape, batch: Batch, plan: Plan) -> int:
    n, a, hidden = batch.tokens, plan.itemsize, shape.hidden
    routed, inner, rank = n * shape.active, shape.intermediate, shape.expert_rank
    router = n * (shape.experts * a + shape.active * (a + 8)) + routed * 16
    if plan.lean_experts and not shape.experts_train:
        projected = 0 if plan.recompute_experts else routed * 2 * inner * a
        # PEFT hands over the adapter in the weights' type.
        factors = _factor_numbers(shape) * a if a < 4 else 0
        return n * hidden * a + projected + 2 * routed * rank * plan.wide + factors + router
    # PEFT makes a changed copy of all weights; transformers' experts, which also train in full, keep every step.
    delta = shape.expert_numbers() * a if rank else 0
    return n * hidden * a + delta + routed * a * (2 * hidden + 9 * inner) + router


def _experts_backward(shape: Shape, batch: Batch, plan: Plan) -> int:
    """What the backward pass of one layer's experts holds besides what is saved."""
    routed, inner, hidden = batch.tokens * shape.active, shape.intermediate, shape.hidden
    numbers = _factor_numbers(shape)
    if not plan.lean_experts or shape.experts_train:
        return 2 * shape.expert_numbers() * plan.itemsize
    if plan.device == "cuda" and plan.kernels:
        # Of the first projection: its gradient, that of its input, and the input in the experts' order. Nothing is
        # unpacked.
        return routed * 2 * (inner + hidden) * plan.itemsize + 2 * numbers * plan.itemsize
    if plan.device == "cuda":
        # Unpacked numbers, four bytes to look up each two of them, and what they are multiplied to before it is copied.
        some = min(shape.experts, UNPACKED_EXPERTS) if plan.packed else 0
        unpacked = some * 2 * hidden * inner * (plan.itemsize + 2)
        made = routed * plan.itemsize * some // shape.experts
        gradients_of_rows = routed * 3 * inner * plan.itemsize + min(routed, ROWS_AT_A_TIME) * 8 * inner * 4
        again = routed * (hidden + 3 * inner) * plan.itemsize + unpacked + made * 2 * inner
        through_the_first = routed * (hidden + 2 * inner) * plan.itemsize + unpacked + made * hidden
        # Of the first projection: its gradient, that of its input, both in the experts' order, and the input.
        first_factors = routed * 2 * (hidden + inner) * plan.itemsize
        phases = [gradients_of_rows, through_the_first, first_factors, *([again] if plan.recompute_experts else [])]
        return max(phases) + 2 * numbers * plan.itemsize
    # One expert at a time, the busiest one with about one and a half times its share.
    one = min(batch.tokens, 3 * routed // (2 * shape.experts))
    return routed * hidden * plan.wide + one * (hidden + 11 * inner) * plan.wide + numbers * 4


def _factor_numbers(shape: Shape) -> int:
    """Numbers in the adapter of one layer's experts."""
    return shape.experts * shape.expert_rank * (2 * shape.hidden + 3 * shape.intermediate)


def _attention_backward(shape: Shape, batch: Batch, plan: Plan) -> int:
    n, query, key = batch.tokens, shape.query_width, shape.key_width
    if not plan.lean_attention:
        return 2 * batch.rows * shape.heads * batch.width**2 * plan.itemsize
    if plan.device == "cuda" and plan.kernels:
        return n * (plan.itemsize * (3 * query + 4 * key) + 4 * shape.heads)
    if plan.device == "cuda":
        return n * plan.itemsize * (5 * query + 4 * key) + flash_scratch(shape, batch, plan.itemsize)
    # Flat copies and one call's blocks with keys and values repeated for every head; gradients add up in float32.
    return n * (plan.wide * (9 * query + 2 * key) + 4 * (query + 2 * key))


def flash_scratch(shape: Shape, batch: Batch, itemsize: int) -> int:
    """What torch's flash kernel allocates for the backward pass of sequences of their own lengths: the gradient of
    queries in float32, each sequence filled up by up to 128 rows, and those of keys and values for every query head."""
    filled = batch.tokens + 128 * max(batch.sequences, batch.rows)
    return shape.query_width * (4 * filled + 2 * itemsize * max(batch.keys, batch.tokens))


def _last_norm(shape: Shape, batch: Batch, plan: Plan) -> int:
    """What the last norm keeps, the residual where that is another tensor, and the normalised output."""
    copied = plan.itemsize < 4 and not plan.lean_norms
    return _norm_bytes(shape, batch, plan) + batch.tokens * shape.hidden * plan.itemsize * (2 if copied else 1)


def _loss(shape: Shape, batch: Batch, plan: Plan) -> int:
    hidden, rows, a = shape.hidden, shape.vocabulary, plan.itemsize
    targets = batch.targets * hidden * a
    if not plan.lean_loss:
        return targets + batch.targets * rows * (a * (2 if a < 4 else 1) + 8)
    chunk = max(1, min(batch.targets, LOGIT_BYTES[plan.device] // (rows * 4)))
    products = 3 * chunk * hidden * 4
    if a < 4:
        # A CPU widens the head even where it multiplies bfloat16.
        products += 2 * min(rows, WIDENED_ROWS) * hidden * 4 if plan.device == "cpu" else chunk * rows * a
    trained_head = rows * hidden * 4 if shape.head_trains else 0
    backward = 2 * targets + chunk * rows * 4 + products + trained_head
    # Entropies take the probabilities beside their logarithms; the backward pass makes the logits again.
    return max(backward, targets + 2 * chunk * rows * 4) if plan.log_probs else backward


def _gradients(shape: Shape, plan: Plan) -> int:
    each = plan.itemsize if shape.full else 4
    size = shape.trainable * each
    if plan.sharded:
        return size // plan.processes
    # DDP keeps the buckets that it sends in addition to the gradients.
    return 2 * size if plan.processes > 1 else size


def _step(shape: Shape, plan: Plan) -> int:
    """What the optimizer holds for a moment: on a CPU two tensors of the size of its largest parameter."""
    if plan.device == "cuda" or not shape.full:
        return 0
    return 2 * shape.largest * plan.itemsize


def _gathered(shape: Shape, plan: Plan) -> int:
    """FSDP2 gathers a layer for its computation, and the next one ahead of it; embedding and head as they are used."""
    if not plan.sharded:
        return 0
    layer = (plan.weights - 2 * shape.vocabulary * shape.hidden * plan.itemsize) // max(1, shape.layers)
    return 2 * layer + shape.vocabulary * shape.hidden * plan.itemsize


def _other(shape: Shape, plan: Plan) -> int:
    return plan.beside + (CUDA_CONTEXT if plan.device == "cuda" else 0)


def while_sampling(shape: Shape, weights: int, itemsize: int, device: str, rows: int, width: int) -> Memory:
    """Memory of a model that draws `rows` samples at a time and trains nothing; `width` counts prompts as well."""
    plan = Plan(device, itemsize, itemsize, weights, sampled_rows=rows, sampled_width=width)
    cache = _sampling(shape, plan)
    lost = int(FRAGMENTATION * cache) if device == "cuda" else 0
    return Memory(weights, 0, 0, 0, cache, 0, _other(shape, plan) + lost, "the sampling")


def _sampling(shape: Shape, plan: Plan) -> int:
    """While rollouts are sampled: their keys and values in the full layers' pool, which grows by half at a time, and in
    a ring of one window of each row and sliding layer; what one full layer gathers of the pool, and its scores twice in
    float32; and the logits of one token of each row."""
    rows, width = plan.sampled_rows, plan.sampled_width
    pair, full = 2 * shape.key_width * plan.itemsize, shape.layers // 2
    used = min(rows * width, max(width, DEFAULT_BATCH_TOKENS))
    pool = min(3 * used // 2, max(width, DEFAULT_BATCH_TOKENS))
    rings = rows * (shape.layers - full) * min(shape.window, width) * pair
    attention = used * (pair + 8 * shape.heads)
    return pool * full * pair + rings + attention + rows * shape.vocabulary * 8
