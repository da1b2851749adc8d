"""Tests of the kernels want triton, and a numpy that its interpreter works with: `make test-kernels` brings both."""

import os

collect_ignore_glob = [] if os.environ.get("KERNEL_TESTS") == "1" else ["test_*.py"]
