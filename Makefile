# make demo    from nothing to a mesh: sets up .venv, runs the example, says where the results are
# make test    the whole test suite
# make test-fast   the quick part of it, for every commit: at most 90 s on two cores
# make test-engines   what needs other programs: joblib, submitit, SLURM, Ray, Optuna, torchrun, W&B, MLflow, notebooks, and
#                     a browser where there is one; installs them (SLURM as root, from Debian's packages)
# make notebooks   runs those of examples/, about 2 minutes
# make site    the documentation as pages, in site/
# make check   lint, formatting, docstrings, types
# make fuzz    property-based tests of user input, 5,000 cases and more (about half an hour); the suite runs a part
# make chaos   200 runs that are killed, starved, damaged or started twice, and must resume to the same result
# make mutate  whether the tests notice changes of the code that computes and saves (hours)
# make clean   removes .venv and caches (results in outputs/ stay)
#
# PYTHON=python3.12        which Python makes .venv (3.11 to 3.13)
# TORCH_ARGS="..."         extra arguments for installing torch. The default Linux wheel includes CUDA; for a machine
#                          without a GPU, PyTorch's CPU index is a much smaller download:
#                          make demo TORCH_ARGS="--index-url URL" (pytorch.org names the URL of its CPU index)
# PROMPT="a pink house"    the prompt of make demo
# ARGS="seed=1 ..."        further settings for make demo;  PYTEST_ARGS="-k name"  for make test and make test-fast
# TEST_JOBS=2              number of test processes, one core each

PYTHON ?= python3
TORCH_ARGS ?=
PROMPT ?= a red and white dotted mushroom
ARGS ?=
PYTEST_ARGS ?=
TEST_JOBS ?= 2

# Without whole runs, kernels of every backend, meshes and full-size networks.
FAST_TESTS := tests/compare tests/config tests/distill tests/runs tests/views tests/visualize \
  tests/test_docs.py --ignore=tests/compare/test_jobs.py --ignore=tests/compare/test_suites_committed.py

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# Each step of the set-up is repeated only when its inputs have changed.
VENV_STAMP := $(VENV)/.made
TORCH_STAMP := $(VENV)/.torch
RUN_STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
SWEEP_STAMP := $(VENV)/.installed-sweep

.PHONY: help demo test test-fast test-engines notebooks site check fuzz chaos mutate clean
.DEFAULT_GOAL := help

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

$(VENV_STAMP):
	@command -v $(PYTHON) >/dev/null || { echo "error: there is no $(PYTHON); name one with make PYTHON=..." >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "error: $$($(PYTHON) --version) will not do: 3.11, 3.12 or 3.13 is needed; name one with make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(TORCH_STAMP): $(VENV_STAMP)
	$(PIP) install $(TORCH_ARGS) torch==2.13.0
	@touch $@

$(RUN_STAMP): $(TORCH_STAMP) pyproject.toml constraints.txt
	$(PIP) install -c constraints.txt -e .
	@touch $@

$(DEV_STAMP): $(RUN_STAMP)
	$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

$(SWEEP_STAMP): $(DEV_STAMP)
	$(PIP) install -c constraints.txt -e '.[sweep,wandb,mlflow,notebooks,site]' playwright
	@touch $@

# prior=shapes: the demonstration downloads no model, on a machine with a GPU either.
demo: $(RUN_STAMP)
	@run="outputs/demo/$$(date +%Y%m%d-%H%M%S)"; \
	$(BIN)/python launch.py --config configs/quick.yaml prompt="$(PROMPT)" prior=shapes run_dir="$$run" $(ARGS) || exit $$?; \
	printf '\nturntable  %s\nmesh       %s\nreport     %s\n' \
	  "$$run/turntable.mp4" "$$run/mesh/model.glb" "$$run/report.html"

test: $(DEV_STAMP)
	$(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadfile -m "not engines" $(PYTEST_ARGS)

test-fast: $(DEV_STAMP)
	$(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadfile $(FAST_TESTS) $(PYTEST_ARGS)

# One after the other: they start clusters, and wait for processes.
test-engines: $(SWEEP_STAMP)
	tests/engines/slurm.sh install
	$(BIN)/python -m pytest -m engines $(PYTEST_ARGS)

notebooks: $(RUN_STAMP)
	$(PIP) install -c constraints.txt -e '.[notebooks]'
	$(BIN)/python scripts/run_notebooks.py

site: $(RUN_STAMP)
	$(PIP) install -c constraints.txt -e '.[site]'
	$(BIN)/python -m mkdocs build --strict

check: $(DEV_STAMP)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

fuzz: $(DEV_STAMP)
	NFSD3D_FUZZ_PROFILE=fuzz $(BIN)/python -m pytest -n $(TEST_JOBS) tests/fuzz $(PYTEST_ARGS)

chaos: $(DEV_STAMP)
	$(BIN)/python scripts/chaos.py --results outputs/chaos.jsonl $(ARGS)

mutate: $(DEV_STAMP)
	$(PIP) install -c constraints.txt -e '.[mutate]'
	$(BIN)/mutmut run $(ARGS)
	$(BIN)/mutmut results

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
