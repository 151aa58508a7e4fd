# One entry point for people and CI. `make help` lists the targets.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.SUFFIXES:

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.setup-done

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(STAMP) ## Install everything this project needs into .venv (and system packages, where it may)

# The stamp names the folder: a venv that was moved or copied is made anew.
$(STAMP): pyproject.toml constraints.txt packaging/bin/runcode scripts/setup.sh
	@sh scripts/setup.sh $(VENV)
	@pwd > $(STAMP)
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
.PHONY: $(STAMP)
endif

.PHONY: demo
demo: setup ## Watch an agent-like session work on a remote workspace, all on this machine
	@$(PY) scripts/demo.py

# Exit status 3: this machine cannot have them. The run then lists their tests as NOT RUN.
.PHONY: agent-clients
agent-clients: ## The real Claude Code and Codex from npm, in the versions that the plugin is proved with
	@sh scripts/setup_agent_clients.sh .cache/agent-clients || [ $$? = 3 ]

.PHONY: oidc-provider
oidc-provider: ## A real OpenID provider from npm, for the tests of signing in through one
	@sh scripts/setup_npm_package.sh .cache/oidc-provider oidc-provider 9.13.3 || [ $$? = 3 ]

.PHONY: npm-ssh2
npm-ssh2: ## npm's SSH client, one of those that are held against a direct sshd
	@sh scripts/setup_npm_package.sh .cache/ssh2 ssh2 1.17.0 || [ $$? = 3 ]

.PHONY: test-agents
test-agents: setup agent-clients ## The plugin in the real Claude Code and Codex, offline, with every long story
	@$(PY) -m pytest tests/agents --agents all $(PYTEST_ARGS)

# What `-n auto` means, and what runs alone: tests/support/spread_run.py. PYTEST_ARGS="-n 0" runs all in one process.
.PHONY: test
test: setup agent-clients oidc-provider npm-ssh2 ## Run the whole test suite, on real parts
	@$(PY) scripts/run_tests.py -n auto $(PYTEST_ARGS)

.PHONY: fidelity
fidelity: setup npm-ssh2 ## The gateway against a direct sshd, client × case, at full size: 1 GB across rekeys, 10,000 execs
	@PYTEST_FIDELITY=long $(PY) -m pytest -n 0 tests/integration/test_gateway_fidelity.py $(PYTEST_ARGS)

.PHONY: contract
contract: setup ## Hold every runtime to the port's contract, and print runtime × case
	@$(PY) -m pytest tests/contract -k runtime $(PYTEST_ARGS)

.PHONY: check
check: setup ## Lint, format check, strict types, import directions
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports

.PHONY: fmt
fmt: setup ## Format the code
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .

.PHONY: bench
bench: setup ## Measure against bare ssh and a direct sshd: medians of interleaved runs, as ratios
	@$(PY) benchmarks/bench.py

.PHONY: bench-audit
bench-audit: setup ## What an append and a page of the timeline cost at 1,000,000 audit records
	@$(PY) benchmarks/audit.py

.PHONY: mutate-guards
mutate-guards: setup ## Take each named guard out of a copy of the code, and see a test fail
	@$(PY) scripts/mutate_guards.py

.PHONY: docs
docs: setup ## Write the reference pages that follow from the code
	@$(PY) scripts/make_docs.py

.PHONY: fuzz
fuzz: setup ## Make up calls from /api/openapi.json and judge each answer, FUZZ_EXAMPLES (500) for each operation; then fuzz-ssh
	@FUZZ_EXAMPLES=$${FUZZ_EXAMPLES:-500} $(PY) -m pytest -n 0 tests/contract/test_openapi_fuzz.py $(PYTEST_ARGS)
	@$(MAKE) --no-print-directory fuzz-ssh

.PHONY: fuzz-ssh
fuzz-ssh: setup ## Twisted SSH sessions to a real gateway, from client and box, 2000 seeded plans (SSH_FUZZ_ARGS="--seed 7 --only 42")
	@$(PY) scripts/fuzz_gateway.py $(SSH_FUZZ_ARGS)

.PHONY: release
release: setup ## Wheel, sdist, .pyz and this system's archive into dist/ (RELEASE_ARGS="--without-python", …)
	@$(PY) scripts/make_release.py $(RELEASE_ARGS)

.PHONY: release-pins
release-pins: setup ## Write the digests of the archives in dist/ into the plugin
	@$(PY) scripts/make_release.py --pin

.PHONY: chaos
chaos: setup ## Kill -9 everything in turn, under load, 100 seeded rounds (CHAOS_ARGS="--seed 7 --only 42"), then gateway-chaos
	@$(PY) scripts/chaos.py $(CHAOS_ARGS)
	@$(PY) scripts/gateway_chaos.py $(GATEWAY_CHAOS_ARGS)

.PHONY: gateway-chaos
gateway-chaos: setup ## Kill and cut between ssh clients, gateways and control planes, 100 seeded rounds (GATEWAY_CHAOS_ARGS)
	@$(PY) scripts/gateway_chaos.py $(GATEWAY_CHAOS_ARGS)

.PHONY: store-chaos
store-chaos: setup ## Kill -9 control planes and their database, SQLite and Postgres, 50 seeded rounds each (STORE_CHAOS_ARGS)
	@$(PY) scripts/store_chaos.py $(STORE_CHAOS_ARGS)

.PHONY: soak
soak: setup ## Mixed load for SOAK_MINUTES (30), and whether anything grows
	@$(PY) scripts/soak.py

.PHONY: clean
clean: ## Remove what setup, demo and tests made (not the downloads that are shared)
	@rm -rf $(VENV) .demo .soak .cache .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis dist build
