# Tandem's commands. `make help` lists them. Needs Python 3.11 or newer with venv, and make; nothing else.
# VENV=dir puts the virtual environment elsewhere; PIP_ARGS="..." goes to every `pip install`;
# ARGS="..." goes to `tandem up` or to pytest.

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
ARGS ?=

PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check install -qq $(PIP_ARGS)
STAMPS := $(VENV)/.stamps

SHIM := libs/sglang-cpu-shim
DISTRIBUTIONS := $(filter-out $(SHIM),$(patsubst %/pyproject.toml,%,$(wildcard libs/*/pyproject.toml services/*/pyproject.toml cli/pyproject.toml)))
SOURCES := $(addsuffix /src,$(DISTRIBUTIONS) $(SHIM))
SHIM_FILES := $(shell find $(SHIM) -name '*.py' -o -name '*.pth' -o -name '*.toml' | grep -v /build/)
CHECKED := libs services cli tools tests $(wildcard benchmarks) $(wildcard examples)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help up setup dev test unit sim test-rdma test-compose bench-smoke check lint types layers protos gen format lock model clean distclean

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

up: setup ## set everything up and start the whole system on this machine (ARGS="--engine mock")
	@$(VENV)/bin/tandem up $(ARGS)

test: dev check ## set everything up, check, and run every test that this machine can run but the long ones
	@$(PY) -m pytest -m "not long" $(ARGS)

unit: dev ## the fast, pure tests only, those of the simulator too
	@$(PY) -m pytest tests/unit tests/sim $(ARGS)

sim: setup ## simulated clusters, seed after seed, until an invariant breaks (ARGS="--seconds 60")
	@$(VENV)/bin/tandem sim run --rooms 1000000000 $(ARGS)

test-rdma: dev ## the tests on RDMA verbs only, long ones too, where need be in a virtual machine that is fetched once
	@TANDEM_REQUIRE=rdma $(PY) -m pytest -m "rdma or rdma_guest" $(ARGS)

test-compose: dev ## the tests in containers only, short ones; starts a Docker engine for them where none answers
	@TANDEM_REQUIRE=docker $(PY) -m pytest -m "docker and not long" tests/compose $(ARGS)

bench-smoke: dev ## run the benchmarks with tiny parameters, to see that they work; minutes
	@$(PY) -m benchmarks.smoke

# --- environment -----------------------------------------------------------------------------------------------------

setup: $(STAMPS)/distributions ## make the virtual environment and install Tandem and SGLang for the CPU

dev: setup $(STAMPS)/dev ## the same, and what tests and checks need

$(STAMPS)/venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Tandem needs Python 3.11 or newer; choose one with PYTHON=python3.x" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "This Python cannot make virtual environments. On Debian: apt install python3-venv" >&2; exit 1; }
	@[ ! -e $(VENV)/pyvenv.cfg ] || [ -d $(STAMPS) ] || \
	  { echo "$(VENV) was not made by this Makefile and is left alone; remove it, or choose another with VENV=dir" >&2; exit 1; }
	@echo "setup 1/4: virtual environment in $(VENV)"
	@mkdir -p $(STAMPS)
	@$(PYTHON) -m venv $(VENV)
	@touch $@

# torch comes first and alone: its index build may bring CUDA libraries, so its needs are not locked here.
$(STAMPS)/torch: requirements/sglang-cpu.txt requirements/base.txt | $(STAMPS)/venv
	@echo "setup 2/4: torch"
	@$(PIP) -c requirements/base.txt -c requirements/sglang-cpu.txt torch
	@touch $@

$(STAMPS)/locked: requirements/base.txt requirements/sglang-cpu.txt | $(STAMPS)/torch
	@echo "setup 3/4: SGLang and everything else that is locked"
	@$(PIP) --no-deps -r requirements/base.txt -r requirements/sglang-cpu.txt
	@touch $@

# Tandem is editable; the shim is not, as its .pth file works only from the root of site-packages.
$(STAMPS)/distributions: $(STAMPS)/torch $(STAMPS)/locked $(addsuffix /pyproject.toml,$(DISTRIBUTIONS)) $(SHIM_FILES)
	@echo "setup 4/4: Tandem"
	@$(PIP) --no-build-isolation --no-deps --force-reinstall ./$(SHIM) $(addprefix -e ./,$(DISTRIBUTIONS))
	@touch $@

$(STAMPS)/dev: requirements/dev.txt | $(STAMPS)/distributions
	@echo "setup: tools for tests and checks"
	@$(PIP) --no-deps -r requirements/dev.txt
	@touch $@

# --- checks ----------------------------------------------------------------------------------------------------------

check: lint types layers protos ## every check that is no test

lint: dev ## ruff: rules and format
	@$(VENV)/bin/ruff check --quiet $(CHECKED)
	@$(VENV)/bin/ruff format --quiet --check $(CHECKED) || { echo "run: make format" >&2; exit 1; }

types: dev ## mypy, strict
	@$(PY) -m mypy $(SOURCES) tools

layers: dev ## import-linter: who may import whom
	@$(VENV)/bin/lint-imports --no-cache >$(STAMPS)/layers.log || { cat $(STAMPS)/layers.log; exit 1; }

protos: dev ## stubs are what protos/ gives, and no message breaks with the last release
	@$(PY) -m tools.gen_protos --check
	@$(PY) -m tools.check_protos

# --- maintenance -----------------------------------------------------------------------------------------------------

gen: dev ## generate what is made from the code: stubs, drawings, the tables of settings, metrics and the HTTP API
	@$(PY) -m tools.gen_protos
	@$(PY) -m tools.room_diagram
	@$(PY) -m tools.settings_doc
	@$(PY) -m tools.metrics_doc
	@$(PY) -m tools.api_doc

format: dev ## format, and fix what ruff can fix
	@$(VENV)/bin/ruff check --quiet --fix $(CHECKED) || true
	@$(VENV)/bin/ruff format --quiet $(CHECKED)

lock: dev ## write requirements/*.txt from requirements/*.in and what is installed
	@$(PY) -m tools.lock

model: dev ## train models/tandem-tiny again (about seven minutes)
	@$(PY) -m tools.make_tiny_model --out models/tandem-tiny

clean: ## remove caches and build leftovers
	@find . -path ./$(VENV) -prune -o -type d \( -name __pycache__ -o -name '*.egg-info' -o -name .pytest_cache \
	  -o -name .mypy_cache -o -name .ruff_cache -o -name .hypothesis -o -name .import_linter_cache \) -print0 \
	  | xargs -0 rm -rf
	@rm -rf $(SHIM)/build .run

distclean: clean ## the same, and the virtual environment
	@rm -rf $(VENV)
