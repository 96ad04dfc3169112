# Every target that needs the local environment (.venv) makes it first: `.ci/set-up` tells how.
# Only git, make and Python 3.11, 3.12 or 3.13 have to be on the machine.

.DEFAULT_GOAL := help
SHELL := /bin/sh
BIN := .venv/bin
READY := .venv/.ready
VERSITYGW_VERSION := v1.8.0
CHECK_HOME := $(CURDIR)/.cache/check
VERSITYGW := .cache/bin/versitygw
PORT ?= 3000

.PHONY: help setup demo ui test test-versitygw test-page faults chaos bench check format lock clean

help: ## Shows this list
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' Makefile

setup: $(READY) ## Makes the local environment .venv from requirements.lock; every other target does it by itself

demo: $(READY) ## Runs real text down the whole road, then searches it with its metrics
	@$(BIN)/lake demo

ui: $(READY) ## Opens Dagster's page at http://127.0.0.1:3000 (another port: make ui PORT=3001); Ctrl-C ends everything
	@$(BIN)/lake ui --port $(PORT)

test: $(READY) ## Runs the tests on a real OpenSearch node and a real S3 server, both started by it
	@$(BIN)/pytest

test-versitygw: $(READY) $(VERSITYGW) ## Runs the storage tests on versitygw, another S3 server; builds it with Go
	@LAKE_TEST_S3=versitygw VERSITYGW="$(CURDIR)/$(VERSITYGW)" $(BIN)/pytest -m storage

test-page: $(READY) ## Opens Dagster's page in Chromium and tests it; the screenshots are in .cache/page
	@$(BIN)/pytest -m page

faults: $(READY) ## Tries every fault in front of a real node, ours beside opensearch-py's helpers; writes docs/faults.md
	@$(BIN)/python -m lake_assets_tests.faults

chaos: $(READY) ## Kills the working process 200 times, at any instant of the road, and compares what is left
	@$(BIN)/python -m lake_assets_tests.chaos --kills 200

bench: $(READY) ## Measures side by side; each line of docs/measurements.md is one of its commands
	@$(BIN)/python -m bench

check: $(READY) ## Checks style, format, types, and that Dagster loads both code locations
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/ty check
	@mkdir -p $(CHECK_HOME) && cp lake_assets/dagster.yaml $(CHECK_HOME)
	@PYTHONWARNINGS=ignore VIRTUAL_ENV="$(CURDIR)/.venv" DAGSTER_HOME="$(CHECK_HOME)" $(BIN)/dg check defs
	@PYTHONWARNINGS=ignore DAGSTER_HOME="$(CHECK_HOME)" $(BIN)/dagster definitions validate -w workspace.yaml

format: $(READY) ## Formats the code and repairs what ruff can
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

lock: $(READY) ## Resolves pyproject.toml into requirements.lock; the newest of everything: make lock UPGRADE=--upgrade
	@$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --group dev --python-version 3.11 \
	  --custom-compile-command "make lock" $(UPGRADE) pyproject.toml -o requirements.lock

clean: ## Removes the environment, the default lake (.lake) and every cache in this folder
	rm -rf .venv .lake .cache build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): requirements.lock requirements-uv.txt pyproject.toml setup.cfg .ci/set-up
	@.ci/set-up

$(VERSITYGW): Makefile
	@command -v go >/dev/null || { echo "versitygw is built with Go, and there is no go here: install Go 1.24 or newer." >&2; exit 1; }
	GOBIN="$(CURDIR)/.cache/bin" CGO_ENABLED=0 go install -ldflags='-s -w' \
	  github.com/versity/versitygw/cmd/versitygw@$(VERSITYGW_VERSION)
	@touch $@
