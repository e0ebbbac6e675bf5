.DEFAULT_GOAL := help
BIN := .venv/bin
SHELL := /bin/bash
# Where the environment forbids byte code, each of the hundred processes of a test run would compile all it imports:
# a second of CPU a process.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help demo test bmcs sanlock contract-tools compose-test systemd-test check rules bench detection packing schemas format lock clean bootstrap

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: bootstrap ## three hosts, six VMs, one host's power cut: what happens, and how fast
	@$(BIN)/rekindle demo

test: bootstrap ## every test: deciders, real NATS, real libvirt, real guests, ten minutes of soak (half an hour on two cores)
	@infra/alltests.sh

bmcs: bootstrap ## real fence agents against BMC emulators, which are installed first (as root; two minutes)
	@infra/bmcs.sh

sanlock: bootstrap ## the lock of the disks by a real sanlock, which is unpacked first (Debian; five minutes)
	@infra/sanlock.sh

contract-tools: bootstrap ## the AsyncAPI document and Alertmanager's payloads, read by their own tools (npm, Debian; minutes)
	@infra/contract.sh

compose-test: bootstrap ## docker-compose.yml run by a real Docker Engine, without a registry (as root; minutes)
	@infra/compose.sh

systemd-test: bootstrap ## the host agent on hosts that a real systemd boots, with a real libvirtd (as root; minutes)
	@infra/systemd.sh

check: bootstrap ## format, lint, types, import contracts, fast tests (about a minute)
	@$(BIN)/ruff format --check --quiet . && $(BIN)/ruff check --quiet .
	@infra/check.sh

rules: ## the Prometheus alert rules, by promtool (Debian package prometheus): read, and fired where they should
	@infra/prometheus/check.sh

bench: bootstrap ## where the seconds of a failover go (median of five runs, and the floor beside it), and what planning costs as pools grow
	@$(BIN)/python -m infra.lab.bench
	@$(BIN)/python -m infra.packing --only-speed

detection: bootstrap ## how soon a crash is found, how often a living host is held failed: 2,000 simulated host-years
	@$(BIN)/python -m infra.detection

packing: bootstrap ## how good and how fast placement is: pools of real VM sizes, beside what others do
	@$(BIN)/python -m infra.packing

schemas: bootstrap ## write the published schemas anew from the code (docs/schemas/)
	@$(BIN)/python -m libs.contract

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
