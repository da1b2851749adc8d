# `make quickstart` trains the embedded model, `make test` tests; both begin on a bare machine with Python 3.11.

SHELL := bash
# The first Python that is new enough; `make PYTHON=...` chooses another.
PYTHON = $(shell for p in python3.11 python3 python3.12 python3.13; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
# Triton, and the numpy that its interpreter works with: laid over what is in VENV, where no GPU brings triton.
KERNELS := .kernels
# Either end of the tested versions, laid over VENV likewise. torch's CUDA build, some GB, only with TORCH=1.
OLDEST := transformers==5.17.0 huggingface-hub==1.33.0
OLDEST_TORCH := torch==2.11.0
NEWEST := transformers==5.24.0
NEWEST_TORCH := torch==2.13.0
PIP := $(BIN)/pip --disable-pip-version-check install -qq --no-deps --no-build-isolation
# torch is a build for CPUs where pip is shown one (the package index has none), else that of the index.
# Sources are built by what the lock has, not by what pip would fetch for it without asking for hashes.
LOCKED := $(PIP) --require-hashes

.PHONY: help quickstart test test-slow test-kernels test-oldest test-newest lint format types docs package-check schemas lock clean

help:
	@echo 'make quickstart     install into .venv, then train and evaluate the embedded model'
	@echo 'make test           the tests, within ten minutes on two cores; some of them: make test PYTEST=tests/unit/configs'
	@echo 'make test-slow      the rest of them, minutes more'
	@echo 'make test-kernels   the Triton kernels: in its interpreter, and compiled for a GPU that need not be there'
	@echo 'make test-oldest    the tests on the oldest tested transformers (TORCH=1: and torch); make test-newest on the newest'
	@echo 'make lint types     ruff and basedpyright; make format rewrites'
	@echo 'make docs           the site, with a reference made from the code: build/site/index.html'
	@echo 'make package-check  build the wheel and run it from a foreign folder'
	@echo 'make schemas        write configs/schemas after a change of settings'
	@echo 'make lock           write requirements/ after a change of dependencies; UPGRADE=1 takes the newest versions'
	@echo 'make clean          remove what builds and tests leave behind'

quickstart: $(VENV)/.installed
	@$(BIN)/counterpoint train configs/quickstart.yaml $(SETTINGS)

# One process a core; each test in one thread, see tests/conftest.py.
# In PYTEST a `-m` of its own takes the place of this one.
test: $(VENV)/.installed-dev
	@$(BIN)/pytest --numprocesses auto --dist worksteal -m 'not slow' $(PYTEST)

test-slow: $(VENV)/.installed-dev
	@$(BIN)/pytest --numprocesses auto --dist worksteal -m slow $(PYTEST)

test-kernels: $(VENV)/.installed-dev $(KERNELS)/.installed
	@KERNEL_TESTS=1 TRITON_INTERPRET=1 PYTHONPATH=$(KERNELS) $(BIN)/pytest tests/kernels/test_parity.py
	@KERNEL_TESTS=1 PYTHONPATH=$(KERNELS) $(BIN)/pytest tests/kernels/test_compiled.py

# Not in .ci/run: two more times all tests.
test-oldest test-newest: test-%: $(VENV)/.installed-dev
	@rm -rf .$*
	@$(BIN)/pip --disable-pip-version-check install -qq --no-deps --target .$* $($(call upper,$*))
	@$(if $(TORCH),$(BIN)/pip --disable-pip-version-check install -qq --target .$* $($(call upper,$*)_TORCH))
	@PYTHONPATH=.$* $(BIN)/pytest --numprocesses auto --dist worksteal -m 'not slow' $(PYTEST)

upper = $(shell echo $1 | tr a-z A-Z)

lint: $(VENV)/.installed-dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(VENV)/.installed-dev
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: $(VENV)/.installed-dev
	@$(BIN)/basedpyright

# Needs no network once its generator is installed.
docs: $(VENV)/.installed-docs
	@$(BIN)/python docs/_site/make_site.py
	@echo 'build/site/index.html'

package-check: $(VENV)/.installed-dev
	@.ci/package-check

schemas: $(VENV)/.installed
	@$(BIN)/counterpoint configs schema --write

lock: $(VENV)/.installed
	@$(BIN)/pip --disable-pip-version-check install -qq uv
	@$(BIN)/python .ci/lock

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# Installed again only when what is installed changes; an interrupted install leaves no stamp and is taken up again.
$(VENV)/.installed: pyproject.toml requirements/base.txt requirements/torch.txt requirements/torch-cpu.txt
	@test -n "$(PYTHON)" || { echo 'Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11'; exit 1; }
	@test -x $(BIN)/python || { echo 'making $(VENV)'; $(PYTHON) -m venv $(VENV); }
	@echo 'installing torch (the largest part, some minutes)'
	@$(LOCKED) --requirement requirements/torch-cpu.txt 2> /dev/null || $(LOCKED) --requirement requirements/torch.txt
	@echo 'installing counterpoint and its other requirements'
	@$(LOCKED) --only-binary :all: --requirement requirements/base.txt
	@$(PIP) --editable .
	@touch $@

$(KERNELS)/.installed: $(VENV)/.installed tests/kernels/requirements.txt
	@echo 'installing triton into $(KERNELS)'
	@rm -rf $(KERNELS)
	@$(LOCKED) --only-binary :all: --target $(KERNELS) --requirement tests/kernels/requirements.txt
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements/dev.txt
	@echo 'installing the tools for tests, lint and types'
	@$(LOCKED) --requirement requirements/dev.txt
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed-dev requirements/docs.txt
	@echo 'installing what builds the site'
	@$(LOCKED) --requirement requirements/docs.txt
	@touch $@
