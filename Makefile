# sim2or: from simulation to the operating room. `make help` lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PY := .venv/bin/python
SIM2OR := .venv/bin/sim2or
PIPELINE ?= pipelines/handover.yaml
# Not from the environment: WSL sets NAME there.
NAME = $(basename $(notdir $(PIPELINE)))
RUN ?= local
FULL ?=
KEYS ?= keys
MINUTES ?= 1
SEED ?= 1
ROUNDS ?= 5
IMAGES := runner sim dataset trainer evaluator exporter policy bridge
CONTAINERS := redis sim dataset trainer exporter evaluator policy robot bridge
ROLES := core sim rl bridge eval learn build dev isaac

.PHONY: help setup reach setup-isaac demo test test-isaac faults k8s-render k8s-check test-compose chaos bench-bus bench-scale bench-sim keys messages images image-isaaclab image-sizes up down logs ps scale-sim test-deep lint format lock lock-check collect dataset train evaluate export deploy report stage-local stage-compose stage-k8s clean

help: ## List the targets
	@awk -F':.*## ' '/^[a-z0-9 -]+:.*## / {n = split($$1, names, " "); for (i = 1; i <= n; i++) printf "  %-12s %s\n", names[i], $$2}' $(MAKEFILE_LIST)

setup: ## Make .venv from the locked requirements (finds or installs uv and CPython 3.12)
	@scripts/setup.sh

reach: setup ## Learn to reach by trial (PPO on MuJoCo); judged on held-out targets, curve and figures (docs/rl.md)
	@$(SIM2OR) run pipelines/reach.yaml --run reach
	@$(PY) tests/perf/rl/main.py runs/reach runs/reach/reach.json runs/reach/reach.png

demo: setup ## The whole product with one command: simulate, record, learn, evaluate, export, deploy
	@$(SIM2OR) run $(PIPELINE) --run $(NAME)

collect dataset train evaluate export deploy report: ## Up to one stage of PIPELINE, with RUN=local|compose|k8s, as run NAME
	@$(MAKE) --no-print-directory stage-$(RUN) UNTIL=$@ FILE=$(if $(and $(FULL),$(filter evaluate,$@)),pipelines/handover-full.yaml,$(PIPELINE))

stage-local: setup
	@$(SIM2OR) run $(FILE) --run $(NAME) --until $(UNTIL)

stage-compose:
	@docker compose ps --quiet --status running redis 2>/dev/null | grep -q . || docker compose up --detach --wait $(CONTAINERS)
	@docker compose run --rm --no-deps pipeline run /app/$(FILE) --run $(NAME) --until $(UNTIL) --no-services

stage-k8s: setup
	@$(SIM2OR) k8s run $(FILE) --run $(NAME) --until $(UNTIL)

stage-%:
	@echo "RUN=$*: where to run; valid: local, compose, k8s. A run's name is NAME=$*" >&2; exit 2

test: setup ## All tests that need no Docker, GPU or hardware
	@$(PY) -m pytest -m "not deep and not faults and not compose" $(ARGS)

faults: setup ## Kill, freeze, cut, fill and flood real processes (docs/faults.md)
	@$(PY) -m pytest -m "faults and not deep" $(ARGS)

k8s-render: setup ## Write what is generated in k8s/, then render every overlay to outputs/k8s
	@$(SIM2OR) k8s policies >k8s/base/space/.policies && mv k8s/base/space/.policies k8s/base/space/network-policies.yaml
	@mkdir -p outputs/k8s && for name in $$(ls k8s/overlays); do kubectl kustomize k8s/overlays/$$name >outputs/k8s/$$name.yaml && echo "outputs/k8s/$$name.yaml: $$(grep -c '^kind:' outputs/k8s/$$name.yaml) objects" || exit 1; done

k8s-check: setup ## Every overlay and component against schemas and our own rules, and Jobs as local processes
	@CI=true $(PY) -m pytest -m "not deep" tests/k8s $(ARGS)

test-compose: setup ## The stack in containers: built, run through kills, taken down and up again (needs an engine)
	@$(PY) -m pytest -m compose --capture=no tests/compose $(ARGS)

chaos: setup ## All faults mixed: MINUTES=n SEED=s; lost must be 0
	@$(PY) tests/faults/chaos.py --minutes $(MINUTES) --seed $(SEED)

bench-bus: setup ## The bus against what else one would use, paired; writes bench/bus.json
	@$(PY) tests/perf/bus/main.py --rounds $(ROUNDS)

bench-scale: ROUNDS = 3
bench-scale: setup ## Simulators 1 to 4, and what each asks of the rest; writes bench/scale.json, docs/scaling.md
	@$(PY) tests/perf/scale/main.py --rounds $(ROUNDS)

bench-sim: ROUNDS = 3
bench-sim: DEVICE = cpu
bench-sim: setup setup-isaac ## Our worlds against their bare engines, paired; writes bench/sim.json, docs/simulation.md
	@$(PY) tests/perf/sim/main.py --rounds $(ROUNDS) --device $(DEVICE)

keys: setup ## CURVE keys and Redis users for what leaves this host, in KEYS=keys
	@$(SIM2OR) keys make --out $(KEYS)

messages: setup ## Generate docs/messages (schemas, AsyncAPI, catalogue) and Grafana's dashboards
	@$(SIM2OR) bus docs docs/messages && $(SIM2OR) bus dashboards

images: ## Build the container images and say how large they are
	@REVISION=$$(git rev-parse --short HEAD 2>/dev/null) docker compose build keys $(filter-out runner,$(IMAGES))
	@$(MAKE) --no-print-directory image-sizes

image-isaaclab: ## Build the image of Isaac Lab's simulators (10 GB; docs/isaaclab.md)
	@REVISION=$$(git rev-parse --short HEAD 2>/dev/null) COMPOSE_FILE=compose/compose.yaml:compose/isaaclab.yaml docker compose build sim-isaaclab

image-sizes: ## How large the images are and what they share; PAGE=docs/containers.md writes it there
	@python3 scripts/image_sizes.py $(addprefix sim2or/,$(IMAGES)) $(if $(PAGE),--page $(PAGE))

up: ## Start the services in containers and wait for them; `docker compose up` also runs PIPELINE
	@docker compose up --detach --wait $(CONTAINERS)

down: ## Stop the containers; runs, keys and jobs stay (docker compose down --volumes removes them)
	@docker compose down

logs: ## Follow the containers' logs; SERVICE=trainer for one
	@docker compose logs --follow --tail 100 $(SERVICE)

ps: ## Show the containers
	@docker compose ps --all

scale-sim: ## Run N=… sim workers in containers, until the next `up` (SIMS in .env stays)
	@$(if $(filter-out 0,$(N)),,echo "N=$(N): how many sim workers; at least 1: make scale-sim N=4" >&2; exit 2;) docker compose up --detach --wait --no-deps --no-recreate --scale sim=$(N) sim

setup-isaac: setup ## Make .venv-isaac: Isaac Lab without Kit (8 GB; docs/isaaclab.md)
	@scripts/setup-isaac.sh

test-isaac: setup-isaac ## Isaac Lab on the CPU: model, world, conformance, jobs
	@.venv-isaac/bin/python -m pytest -m isaac --timeout=900 services/sim/tests/isaac $(ARGS)

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
