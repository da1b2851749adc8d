"""An MXFP4 base in memory against transformers' own conversion: numbers, loading, training, and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import GptOssConfig, GptOssForCausalLM, Mxfp4Config
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from counterpoint.configs.errors import ModelError
from counterpoint.configs.model_section import LoraSettings, ModelSettings
from counterpoint.data.harmony.vocabulary import SPECIAL_NAMES, byte_ids, load_vocabulary
from counterpoint.train.adapters.attach import attach_lora, attachment_table, load_lora
from counterpoint.train.adapters.implementations import use_implementations
from counterpoint.train.checkpoints.weights import save_weights
from counterpoint.train.model.load import load_model
from counterpoint.train.model.mxfp4 import Mxfp4Tensor, frozen_mxfp4, unpacked
from counterpoint.train.model.mxfp4_load import load_mxfp4
from counterpoint.train.model.vocabulary_map import VocabularyMap

IDS = torch.randint(1, 64, (2, 24), generator=torch.Generator().manual_seed(0))
SHAPE = {"hidden_size": 64, "intermediate_size": 32, "vocab_size": 256 + len(SPECIAL_NAMES)}


def packed_experts(experts, inputs, outputs, scales=(118, 124), seed=0):
    random = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8, generator=random)
    return blocks, torch.randint(*scales, (experts, outputs, inputs // 32), dtype=torch.uint8, generator=random)


@pytest.fixture
def checkpoint(build_gptoss, tmp_path) -> Path:
    """A tiny checkpoint in the released tensor names: two shards, experts as blocks and scales."""
    model = build_gptoss(torch.bfloat16, **SHAPE)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = packed_experts(
            experts, inputs, outputs, seed=len(tensors)
        )
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for shard, held in shards.items():
        save_file({name: tensors[name] for name in held}, folder / shard, metadata={"format": "pt"})
    weight_map = {name: shard for shard, held in shards.items() for name in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    config = {**model.config.to_dict(), "quantization_config": {"quant_method": "mxfp4"}, "dtype": "bfloat16"}
    config["architectures"] = ["GptOssForCausalLM"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def dequantised(folder: Path, dtype=torch.bfloat16) -> GptOssForCausalLM:
    """The same checkpoint by transformers."""
    model = GptOssForCausalLM.from_pretrained(
        folder, dtype=dtype, quantization_config=Mxfp4Config(dequantize=True), attn_implementation="eager"
    )
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)  # transformers 5.19 unpacks to bfloat16 alone
    return model


def loaded(folder: Path, dtype=torch.bfloat16) -> GptOssForCausalLM:
    return load_mxfp4(folder, GptOssConfig.from_pretrained(folder), dtype, torch.device("cpu"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scales", [(100, 140), (2, 250)])
def test_numbers_are_bit_equal_to_transformers(dtype, scales):
    blocks, exponents = packed_experts(3, 64, 48, scales)
    theirs = convert_moe_packed_tensors(blocks, exponents, dtype=dtype)
    ours = Mxfp4Tensor(blocks.flatten(-2), exponents, dtype)
    assert ours.shape == theirs.shape == (3, 64, 48)
    assert torch.equal(ours.dense(), theirs)
    assert torch.equal(ours[1], theirs[1])
    assert torch.equal(ours.expert(2, torch.float32), theirs[2].float())
    assert torch.equal(ours @ torch.ones(48, dtype=dtype), theirs @ torch.ones(48, dtype=dtype))


@settings(max_examples=30)
@given(st.lists(st.integers(0, 255), min_size=16, max_size=16), st.integers(1, 254))
def test_any_byte_and_scale(bytes_, scale):
    blocks, scales = torch.tensor([[bytes_]], dtype=torch.uint8), torch.tensor([[[scale]]], dtype=torch.uint8)
    theirs = convert_moe_packed_tensors(blocks[:, :, None], scales, dtype=torch.float64)
    assert torch.equal(unpacked(blocks, scales, torch.float64), theirs.transpose(1, 2))


def test_the_whole_model_equals_the_dequantised_one(checkpoint):
    ours, theirs = loaded(checkpoint), dequantised(checkpoint)
    assert ours.config.to_dict().get("quantization_config") is None
    state = theirs.state_dict()
    for name, parameter in ours.named_parameters():
        assert parameter.dtype == state[name].dtype
        assert parameter.shape == state[name].shape
        plain = parameter.dense() if isinstance(parameter, Mxfp4Tensor) else parameter
        assert torch.equal(plain, state[name]), name
    for (name, ours_buffer), (other, their_buffer) in zip(ours.named_buffers(), theirs.named_buffers(), strict=True):
        assert name == other
        assert torch.equal(ours_buffer, their_buffer)
    with torch.no_grad():
        assert torch.equal(ours(IDS).logits, theirs(IDS).logits)


@pytest.mark.parametrize("experts", ["lean", "reference"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_it_trains_like_the_dequantised_one(checkpoint, experts, checkpointing, tmp_path):
    losses, finals = [], []
    for model in (loaded(checkpoint, torch.float32), dequantised(checkpoint, torch.float32)):
        torch.manual_seed(0)
        model = attach_lora(model, LoraSettings(rank=2))
        use_implementations(model, ModelSettings(experts=experts))
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        steps = []
        for _ in range(4):
            loss = model(IDS, labels=IDS).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            steps.append(loss.item())
        losses.append(steps)
        finals.append(model)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0][-1] < losses[0][0]
    assert attachment_table(finals[0]).total == attachment_table(finals[1]).total
    finals[0].save_pretrained(str(tmp_path / "adapter"))
    assert all("lora_" in name for name in load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    again = load_lora(dequantised(checkpoint, torch.float32), tmp_path / "adapter")
    with torch.no_grad():
        assert torch.allclose(again(IDS).logits, finals[0](IDS).logits, atol=1e-4, rtol=0)


def test_experts_take_a_quarter_of_bfloat16_and_are_never_whole(checkpoint):
    model = loaded(checkpoint)
    stacks = [p for p in model.parameters() if isinstance(p, Mxfp4Tensor)]
    assert len(stacks) == 4
    for stack in stacks:
        assert stack.packed_bytes == stack.numel() * (4 + 8 / 32) / 8
    use_implementations(model, ModelSettings())
    widest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal widest
            out = func(*args, **(kwargs or {}))
            if type(out) is torch.Tensor and out.ndim == 3 and out.shape[0] == 4:
                widest = max(widest, out.numel())
            return out

    with Watch(), torch.no_grad():
        model(IDS)
    assert widest < min(stack.numel() for stack in stacks)


def test_it_stays_packed_under_moves_and_type_changes_and_refuses_writing(checkpoint):
    model = loaded(checkpoint).to(torch.float32).to("cpu")
    stack = model.model.layers[0].mlp.experts.down_proj
    assert isinstance(stack, Mxfp4Tensor)
    assert isinstance(stack, torch.nn.Parameter)
    assert stack.dtype == torch.float32
    assert not stack.requires_grad
    assert "Mxfp4Tensor" in repr(stack)
    peft = attach_lora(model, LoraSettings(rank=2))
    with pytest.raises(ModelError, match="frozen and cannot be written to"):
        peft.merge_adapter()


def test_generate_with_cache(checkpoint):
    choice = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    ours, theirs = loaded(checkpoint, torch.float32), dequantised(checkpoint, torch.float32)
    use_implementations(ours, ModelSettings())
    assert torch.equal(ours.generate(input_ids=IDS, **choice), theirs.generate(input_ids=IDS, **choice))


def rewrite(folder: Path, change) -> None:
    for shard in folder.glob("*.safetensors"):
        tensors = load_file(shard)
        change(tensors)
        save_file(tensors, shard, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.pop("model.layers.1.mlp.experts.down_proj_scales", None), r"down_proj is missing \(1 in all\)"),
        (lambda t: t.pop("model.norm.weight", None), r"model.norm.weight is missing"),
        (lambda t: t.update({f"{min(t)}.more": torch.zeros(1)}), "is no tensor of gpt-oss"),
        (lambda t: t.update({k: v[..., :1].clone() for k, v in t.items() if "_scales" in k}), "do not fit"),
        (
            lambda t: t.update({k: v[:7].clone() for k, v in t.items() if "q_proj.bias" in k}),
            r"gives \(7,\), config.json",
        ),
    ],
)
def test_a_damaged_checkpoint_is_an_error(checkpoint, change, match):
    rewrite(checkpoint, change)
    with pytest.raises(ModelError, match=match):
        loaded(checkpoint)


def test_a_missing_shard_and_a_checkpoint_without_blocks_are_errors(checkpoint, build_gptoss, tmp_path):
    (checkpoint / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model-00002-of-00002.safetensors is missing"):
        loaded(checkpoint)
    plain = build_gptoss(**SHAPE)
    plain.save_pretrained(tmp_path / "plain")
    with pytest.raises(ModelError, match=r"set model\.base to bf16"):
        load_mxfp4(tmp_path / "plain", plain.config, torch.bfloat16, torch.device("cpu"))


def test_a_parameter_of_blocks_and_scales():
    parameter = frozen_mxfp4(*packed_experts(2, 32, 8), torch.bfloat16)
    assert isinstance(parameter, torch.nn.Parameter)
    assert parameter.shape == (2, 32, 8)


def test_the_setting_loads_it(checkpoint):
    VocabularyMap.from_ids([*byte_ids(load_vocabulary()), *SPECIAL_NAMES]).save(checkpoint)
    found = load_model(ModelSettings(name=str(checkpoint), base="mxfp4", dtype="float32")).model
    assert isinstance(found.model.layers[0].mlp.experts.gate_up_proj, Mxfp4Tensor)
    with torch.no_grad():
        assert torch.equal(found(IDS).logits, dequantised(checkpoint, torch.float32)(IDS).logits)


def test_a_base_unpacked_from_mxfp4_is_saved_as_plain_weights(checkpoint, tmp_path):
    VocabularyMap.from_ids([*byte_ids(load_vocabulary()), *SPECIAL_NAMES]).save(checkpoint)
    model = load_model(ModelSettings(name=str(checkpoint), dtype="bfloat16")).model
    save_weights(model, tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    again = GptOssForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    for (name, mine), theirs in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name
