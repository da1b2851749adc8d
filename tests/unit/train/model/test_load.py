import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from counterpoint.configs.errors import ModelError
from counterpoint.configs.model_section import ModelSettings
from counterpoint.data.harmony.vocabulary import CALL, ENDOFTEXT, RETURN
from counterpoint.train.model.embedded import tiny_folder
from counterpoint.train.model.load import LoadedModel, device_of, dtype_of, load_model
from counterpoint.train.model.tiny import random_tiny, tiny_config
from counterpoint.train.model.vocabulary_map import MAP_FILE, VocabularyMap


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    folder = tmp_path / "checkpoint"
    loaded = random_tiny(seed=3)
    loaded.model.save_pretrained(folder)
    loaded.vocabulary_map.save(folder)
    return folder


def load(folder: Path, **settings) -> LoadedModel:
    return load_model(ModelSettings(name=str(folder), **settings))


def test_random_weights_follow_the_seed_and_leave_the_global_state_alone() -> None:
    state = torch.random.get_rng_state()
    one, two, other = random_tiny(1), random_tiny(1), random_tiny(2)
    assert torch.equal(torch.random.get_rng_state(), state)
    first = one.model.state_dict()
    assert all(torch.equal(first[name], tensor) for name, tensor in two.model.state_dict().items())
    assert not torch.equal(first["lm_head.weight"], other.model.state_dict()["lm_head.weight"])


def test_the_tiny_model_has_the_real_architecture() -> None:
    config = tiny_config(100)
    assert config.layer_types == ["sliding_attention", "full_attention"]
    assert config.router_aux_loss_coef == 0.0
    names = {name for name, _ in random_tiny().model.named_parameters()}
    assert "model.layers.1.mlp.experts.gate_up_proj" in names
    assert "model.layers.0.self_attn.sinks" in names


def test_a_saved_checkpoint_comes_back(checkpoint: Path) -> None:
    expected = random_tiny(seed=3)
    loaded = load(checkpoint)
    state = loaded.model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.model.state_dict().items())
    assert loaded.vocabulary_map.n_rows == expected.vocabulary_map.n_rows
    assert loaded.vocabulary.encode("What is 2 + 2?") == expected.vocabulary.encode("What is 2 + 2?")
    assert loaded.model.config._attn_implementation == "eager"


def test_sampling_stops_at_both_stop_tokens(checkpoint: Path) -> None:
    loaded = load(checkpoint)
    mapping = loaded.vocabulary_map
    assert loaded.model.generation_config.eos_token_id == [mapping.row(RETURN), mapping.row(CALL)]
    assert loaded.model.generation_config.pad_token_id == mapping.row(ENDOFTEXT)


def test_random_init_takes_the_shape_and_the_vocabulary_only(checkpoint: Path) -> None:
    torch.manual_seed(5)
    one = load(checkpoint, init="random")
    torch.manual_seed(5)
    two = load(checkpoint, init="random")
    saved = load(checkpoint)
    weight = "lm_head.weight"
    assert torch.equal(one.model.state_dict()[weight], two.model.state_dict()[weight])
    assert not torch.equal(one.model.state_dict()[weight], saved.model.state_dict()[weight])
    assert one.vocabulary_map.n_rows == saved.vocabulary_map.n_rows


def test_dtypes() -> None:
    assert dtype_of("auto", torch.device("cpu")) == torch.float32
    assert dtype_of("bfloat16", torch.device("cpu")) == torch.bfloat16
    loaded = load_model(ModelSettings(dtype="bfloat16", init="random"))
    assert loaded.model.lm_head.weight.dtype == torch.bfloat16


def test_cuda_without_cuda_is_told(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of("auto") == torch.device("cpu")
    with pytest.raises(ModelError, match="cuda was asked for"):
        device_of("cuda")


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never a bare `cuda`: safetensors takes it for the first GPU, and all processes would fill that one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert device_of("auto") == torch.device("cuda:0")
    assert device_of("cpu") == torch.device("cpu")
    for rank in range(2):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        assert device_of("auto") == device_of("cuda") == torch.device("cuda", rank)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ModelError, match="process 3 of this machine has no GPU of its own, torch sees 2"):
        device_of("auto")


def test_pickled_weights_are_refused_and_never_read(checkpoint: Path) -> None:
    class Trap:
        def __reduce__(self):
            return (Path.touch, (checkpoint / "executed",))

    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "pytorch_model.bin").write_bytes(pickle.dumps({"lm_head.weight": Trap()}))
    with pytest.raises(ModelError, match=r"only pickled weights \(pytorch_model.bin\), which are never loaded"):
        load(checkpoint)
    assert not (checkpoint / "executed").exists()


def test_remote_code_is_never_run(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "evil.Evil", "AutoConfig": "evil.EvilConfig"}
    (checkpoint / "config.json").write_text(json.dumps(config))
    (checkpoint / "evil.py").write_text(f"open({str(checkpoint / 'executed')!r}, 'w')\n")
    assert load(checkpoint).source == str(checkpoint)
    assert not (checkpoint / "executed").exists()


def test_missing_weights_are_never_made_up(checkpoint: Path) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    del weights["model.layers.1.mlp.router.weight"]
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks model.layers.1.mlp.router.weight \(1 in all\)"):
        load(checkpoint)


def test_damaged_weights_are_told_on_one_line(checkpoint: Path) -> None:
    raw = (checkpoint / "model.safetensors").read_bytes()
    (checkpoint / "model.safetensors").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        load(checkpoint)
    assert "\n" not in str(caught.value)


def test_a_map_of_another_size_is_refused(checkpoint: Path) -> None:
    VocabularyMap.from_ids(range(300)).save(checkpoint)
    with pytest.raises(ModelError, match=f"{MAP_FILE}: 300 ids for"):
        load(checkpoint)


def test_another_architecture_is_refused(checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ModelError, match="a model of type llama, not gpt_oss"):
        load(checkpoint)


def test_a_name_that_is_nothing_is_told(tmp_path) -> None:
    with pytest.raises(ModelError, match=r"model.name: no config.json in .*give `tiny`, a checkpoint folder"):
        load(tmp_path)
    with pytest.raises(ModelError, match="there is no folder"):
        load(tmp_path / "missing")


def test_a_foreign_tokenizer_is_refused(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0, "b": 1}}}))
    with pytest.raises(ModelError, match="not gpt-oss's o200k"):
        load(checkpoint)


def test_the_package_brings_config_and_map() -> None:
    mapping = VocabularyMap.load(tiny_folder())
    config = json.loads((tiny_folder() / "config.json").read_text())
    assert config["vocab_size"] == mapping.n_rows
    assert config == json.loads(json.dumps(config | {"architectures": ["GptOssForCausalLM"], "dtype": "float32"}))


def test_a_checkpoint_without_a_map_is_the_identity(checkpoint: Path, tmp_path) -> None:
    other = tmp_path / "other"
    shutil.copytree(checkpoint, other)
    (other / MAP_FILE).unlink()
    # Rows of a real checkpoint are ids; this one is too small to hold the specials, so it is refused.
    with pytest.raises(ModelError, match="token id"):
        load(other)
