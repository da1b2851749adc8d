"""vLLM 0.30, the last version on openai-harmony: the same adapter in an older environment."""

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).resolve().parents[1] / "vllm" / "adapter.py"), run_name="__main__")
