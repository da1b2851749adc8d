"""Which kernels run: as `model.kernels` asks, where they give torch's numbers."""

from __future__ import annotations

import importlib
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from counterpoint.configs.errors import ModelError
from counterpoint.configs.model_section import ModelSettings
from counterpoint.train.adapters import kernel_choice
from counterpoint.train.adapters.implementations import use_implementations
from counterpoint.train.kernels.registry import chosen, put_in_use

GPU = torch.device("cuda:0")


def use_kernels(setting: str, device: torch.device) -> list[str]:
    """Anew: the checks run once a process."""
    kernel_choice._tried.cache_clear()
    return kernel_choice.use_kernels(setting, device)


ON_GPU: Any = SimpleNamespace(device=GPU)


@pytest.fixture
def gpu(monkeypatch):
    """A GPU with triton; the kernels' checks find what this says."""
    errors = {"swiglu": 0.001, "unpack": 0.0, "grouped": 0.003}

    def check(name):
        def run(device, dtype):
            assert (device, dtype) == (GPU, torch.bfloat16)
            if isinstance(errors[name], Exception):
                raise errors[name]
            return errors[name]

        return run

    checks = SimpleNamespace(CHECKS={name: check(name) for name in errors}, KERNELS={name: name for name in errors})
    importing = importlib.import_module
    monkeypatch.setattr(kernel_choice, "import_module", lambda name: checks if "checks" in name else importing(name))
    monkeypatch.setattr(kernel_choice, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    yield errors
    kernel_choice._tried.cache_clear()
    put_in_use({})


def test_auto_takes_those_that_are_right(gpu):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert use_kernels("auto", GPU) == ["swiglu", "unpack", "grouped"]
    assert chosen("grouped", ON_GPU) == "grouped"
    assert chosen("grouped", torch.zeros(1)) is None
    gpu["grouped"] = 0.05
    with pytest.warns(UserWarning, match="the kernel grouped differs from its plain form by 0.05 on this GPU"):
        assert use_kernels("auto", GPU) == ["swiglu", "unpack"]
    assert chosen("grouped", ON_GPU) is None
    assert chosen("swiglu", ON_GPU) == "swiglu"
    gpu["unpack"] = RuntimeError("PTX is too new\nfor this driver")
    with (
        pytest.warns(UserWarning, match="kernel grouped differs"),
        pytest.warns(UserWarning, match=r"unpack does not run on this GPU \(RuntimeError: PTX is too new\)"),
    ):
        assert use_kernels("auto", GPU) == ["swiglu"]
    assert use_kernels("torch", GPU) == []
    assert chosen("swiglu", ON_GPU) is None


def test_triton_asks_for_all(gpu, monkeypatch):
    assert use_kernels("triton", GPU) == ["swiglu", "unpack", "grouped"]
    gpu["swiglu"] = float("inf")
    with pytest.raises(ModelError, match=r"model\.kernels: triton, but the kernel swiglu differs"):
        use_kernels("triton", GPU)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert use_kernels("auto", GPU) == []
    with pytest.raises(ModelError, match=r"older than compute capability 8\.0: set model\.kernels to torch"):
        use_kernels("triton", GPU)
    monkeypatch.setattr(kernel_choice, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="triton is not installed"):
        use_kernels("triton", GPU)


def test_a_cpu_has_none(build_gptoss):
    model = build_gptoss()
    use_implementations(model, ModelSettings())
    use_implementations(model, ModelSettings(kernels="torch"))
    with pytest.raises(ModelError, match="they need a CUDA device, and this run is on the cpu"):
        use_implementations(model, ModelSettings(kernels="triton"))
