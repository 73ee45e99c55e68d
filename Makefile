# sim2or: from simulation to the operating room. `make help` lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PY := .venv/bin/python
SIM2OR := .venv/bin/sim2or
PIPELINE ?= pipelines/handover.yaml
RUN ?= $(basename $(notdir $(PIPELINE)))
FULL ?=
KEYS ?= keys
MINUTES ?= 1
SEED ?= 1
ROUNDS ?= 5
IMAGES := runner sim dataset trainer evaluator exporter policy bridge
ROLES := core sim bridge eval learn build dev

.PHONY: help setup demo test faults chaos bench-bus keys messages images test-deep lint format lock lock-check collect dataset train evaluate export deploy report clean

help: ## List the targets
	@awk -F':.*## ' '/^[a-z -]+:.*## / {n = split($$1, names, " "); for (i = 1; i <= n; i++) printf "  %-12s %s\n", names[i], $$2}' $(MAKEFILE_LIST)

setup: ## Make .venv from the locked requirements (finds or installs uv and CPython 3.12)
	@scripts/setup.sh

demo: setup ## The whole product with one command: simulate, record, learn, evaluate, export, deploy
	@$(SIM2OR) run $(PIPELINE) --run $(RUN)

collect dataset train export deploy report: setup ## One stage of PIPELINE, with what it needs before it
	@$(SIM2OR) run $(PIPELINE) --run $(RUN) --until $@

evaluate: setup ## The verdict; FULL=1: 300 trials and three training seeds, the worst first
	@$(SIM2OR) run $(if $(FULL),pipelines/handover-full.yaml,$(PIPELINE)) --run $(RUN) --until evaluate

test: setup ## All tests that need no Docker, GPU or hardware
	@$(PY) -m pytest -m "not deep and not faults" $(ARGS)

faults: setup ## Kill, freeze, cut, fill and flood real processes (docs/faults.md)
	@$(PY) -m pytest -m "faults and not deep" $(ARGS)

chaos: setup ## All faults mixed: MINUTES=n SEED=s; lost must be 0
	@$(PY) tests/faults/chaos.py --minutes $(MINUTES) --seed $(SEED)

bench-bus: setup ## The bus against what else one would use, paired; writes bench/bus.json
	@$(PY) tests/perf/bus/main.py --rounds $(ROUNDS)

keys: setup ## CURVE keys and Redis users for what leaves this host, in KEYS=keys
	@$(SIM2OR) keys make --out $(KEYS)

messages: setup ## Generate docs/messages: schemas, AsyncAPI, catalogue
	@$(SIM2OR) bus docs docs/messages

images: ## Build the container images and say how large they are
	@REVISION=$$(git rev-parse --short HEAD 2>/dev/null) docker compose build -q keys $(filter-out runner,$(IMAGES))
	@docker image ls --format '{{.Repository}}:{{.Tag}} {{.Size}}' | grep '^sim2or/' | sort

test-deep: setup ## What takes longer: soaks, long training (milestones)
	@$(PY) -m pytest -m deep --timeout=3600 $(ARGS)

lint: setup ## ruff, mypy, import rules
	@.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy shared/src shared/lerobot_policy_sim2or/src services/*/src && .venv/bin/lint-imports --config .importlinter && $(SIM2OR) bus check

format: setup ## Format the code
	@.venv/bin/ruff check --fix . ; .venv/bin/ruff format .

lock: ## Compile requirements/*.lock from *.in (one constraints file)
	@scripts/lock.sh $(ROLES)

lock-check: ## Fail when a lock no longer fits its .in, or two locks disagree
	@scripts/lock.sh --check $(ROLES)

clean: ## Remove runs/ (episodes, checkpoints, reports)
	rm -rf runs
