.DEFAULT_GOAL := help
BIN := .venv/bin
SHELL := /bin/bash
# Where the environment forbids byte code, each of the hundred processes of a test run would compile all it imports:
# a second of CPU a process.
export PYTHONDONTWRITEBYTECODE :=

SOAK := tests/lab/test_soak.py::test_no_suspicion_becomes_a_verdict_under_load_loss_and_changes_of_leader

.PHONY: help demo test check bench detection format lock clean bootstrap

help: ## this list
	@awk -F':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: bootstrap ## three hosts, six VMs, one host's power cut: what happens, and how fast
	@$(BIN)/rekindle demo

test: bootstrap ## every test: deciders, real NATS, real libvirt, real guests (twelve minutes on two cores)
	@# Simulated worlds have no deadlines. At first they are the load beside the soak, at the usual priority; then real
	@# processes, which have deadlines and mostly wait, come first, and worlds get what they leave: by their nice value, and as
	@# a session (autogroup), since services and hosts are sessions of their own.
	@worlds=$$(mktemp); REKINDLE_SEEDS=2000 setsid $(BIN)/pytest tests/simulation tests/golden -q -n 2 --dist worksteal \
		--timeout 900 >$$worlds 2>&1 & other=$$!; \
	trap 'kill -TERM -$$other 2>/dev/null; rm -f $$worlds' EXIT; \
	REKINDLE_LOADED=1 $(BIN)/pytest $(SOAK) -q; soak=$$?; \
	echo 19 2>/dev/null >/proc/$$other/autogroup; renice -n 19 -g $$other >/dev/null 2>&1; \
	$(BIN)/pytest tests --ignore tests/simulation --ignore tests/golden --deselect $(SOAK) -q -n 3 --dist worksteal; real=$$?; \
	wait $$other; result=$$?; cat $$worlds; exit $$((soak + real + result))

check: bootstrap ## format, lint, types, import contracts, fast tests (about a minute)
	@$(BIN)/ruff format --check --quiet . && $(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache 2>&1 | tail -n 12; exit $${PIPESTATUS[0]}
	@$(BIN)/pytest tests -q -m fast -n 3 --dist worksteal

bench: bootstrap ## where the seconds of a failover go: median of five runs, and the floor beside it
	@$(BIN)/python -m infra.lab.bench

detection: bootstrap ## how soon a crash is found, how often a living host is held failed: 2,000 simulated host-years
	@$(BIN)/python -m infra.detection

format: bootstrap ## put the code into its form
	@$(BIN)/ruff format --quiet . && $(BIN)/ruff check --quiet --fix .

lock: bootstrap ## resolve the requirements anew into requirements.lock
	@.venv/uv/bin/uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate \
		--no-emit-index-url --group dev pyproject.toml -o requirements.lock

clean: ## remove what the other targets made in this directory
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .bootstrap.lock
	@find . -name __pycache__ -prune -exec rm -rf {} +

bootstrap:
	@infra/bootstrap.sh
