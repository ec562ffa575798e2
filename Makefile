# rlhf-jax: every command from a fresh clone on a machine with Python >= 3.11 and nothing else.
# Each target installs what it needs into .venv once; a stamp file in .venv remembers it.

PYTHON ?= python3
JOBS ?= 2
ARGS ?=
# Programs compiled as users' are; `make test` compiles faster, see tests/conftest.py.
OPTIMISED := XLA_FLAGS="--xla_backend_optimization_level=3 --xla_llvm_disable_expensive_passes=false $$XLA_FLAGS"

VENV := .venv
BIN := $(VENV)/bin
RUN := $(BIN)/python
PIP := $(RUN) -m pip --disable-pip-version-check --no-input

# Half-installed is not installed: a failing recipe leaves no stamp behind.
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help quickstart test parity browser long sweeps notebooks lint format mutations

help: ## show this list
	@echo "make <target>   (PYTHON=python3.12 chooses the interpreter, ARGS='-k gae' goes to pytest, JOBS=4 sets workers)"
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-11s %s\n", $$1, $$2 }' Makefile

quickstart: $(VENV)/.installed ## install, then the whole loop in a small made world, about 4 minutes on 2 cores
	$(RUN) experiments/quickstart.py $(ARGS)

test: $(VENV)/.installed-test ## every fast test, at most 10 minutes on 2 cores
	$(RUN) -m pytest -n $(JOBS) --dist worksteal --durations 10 $(ARGS)

parity: $(VENV)/.installed-parity ## compare with live oracles (installs torch 2.13.0)
	$(OPTIMISED) $(RUN) -m pytest -m parity -n $(JOBS) --dist worksteal --durations 10 $(ARGS)

browser: $(VENV)/.installed-browser ## the labelling page in a real browser (needs chromium and chromedriver)
	$(RUN) -m pytest -m browser --durations 10 $(ARGS)

long: $(VENV)/.installed-test ## many seeds, kills, all meshes
	$(OPTIMISED) $(RUN) -m pytest -m long -n $(JOBS) --durations 10 $(ARGS)

sweeps: $(VENV)/.installed ## the sweeps of docs/: PPO's details, the KL, policy losses; about an hour and a half on 2 cores
	@for name in ppo_details kl losses; do \
	  $(RUN) -m rlhf_jax.runs.sweep experiments/ppo.py experiments/sweeps/$$name.yaml --jobs $(JOBS) $(ARGS) || exit 1; \
	done

notebooks: $(VENV)/.installed-test ## every notebook from top to bottom, at most 10 minutes on 2 cores
	$(OPTIMISED) $(RUN) -m pytest tests/notebooks -m "long or not long" -n $(JOBS) --durations 10 $(ARGS)

lint: $(VENV)/.installed-test ## ruff check, ruff format --check, mypy
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: $(VENV)/.installed-test ## let ruff mend and format what it can
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

mutations: $(VENV)/.installed-test ## break the code on purpose and see the tests fail
	$(RUN) -m tests.mutations.run --jobs $(JOBS) $(ARGS)

# The interpreter: $(PYTHON) where it is new enough, else the first newer one on PATH that really runs
# (the shims of version managers are on PATH without running). An existing .venv is used, never emptied.
$(VENV)/.python:
	@new_enough='import sys; sys.exit(sys.version_info < (3, 11))'; \
	if [ -e $(VENV) ]; then \
	  if ! $(RUN) -c "$$new_enough" 2>/dev/null || ! $(RUN) -m pip --version >/dev/null 2>&1; then \
	    echo "error: $(VENV) exists but holds no working Python >= 3.11 with pip; remove it (rm -rf $(VENV)) and run make again" >&2; exit 1; \
	  fi; \
	else \
	  chosen=; \
	  for python in $(PYTHON) python3.13 python3.12 python3.11; do \
	    if "$$python" -c "$$new_enough" >/dev/null 2>&1; then chosen=$$python; break; fi; \
	  done; \
	  if [ -z "$$chosen" ]; then \
	    echo "error: rlhf-jax needs Python >= 3.11, and '$(PYTHON)' is '$$($(PYTHON) --version 2>&1 | head -n 1)'; install a newer one or name it: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; \
	  fi; \
	  echo "making $(VENV) with $$chosen ($$("$$chosen" --version 2>&1))"; \
	  "$$chosen" -m venv $(VENV) || { rm -rf $(VENV); \
	    echo "error: '$$chosen -m venv' failed; on Debian and Ubuntu it needs the package python3-venv" >&2; exit 1; }; \
	fi
	@touch $@

$(VENV)/.installed: $(VENV)/.python pyproject.toml
	$(PIP) install -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.python pyproject.toml
	$(PIP) install -e '.[test]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-parity: $(VENV)/.python pyproject.toml
	$(PIP) install -e '.[test,parity]'
	@touch $@ $(VENV)/.installed-test $(VENV)/.installed

$(VENV)/.installed-browser: $(VENV)/.python pyproject.toml
	$(PIP) install -e '.[test,browser]'
	@touch $@ $(VENV)/.installed-test $(VENV)/.installed
