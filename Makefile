# What one types here. Every target sets up what it needs in .venv first.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: run demo test lint soak bench redis

# Start the router for real: configured by the environment, against the real backend.
run: .venv/run
	exec $(BIN)/gunicorn

# Watch the main job done against a scripted backend; ends with Ctrl-C.
demo: .venv/run
	exec $(BIN)/python -m tests.support.demo

test: lint redis
	$(BIN)/python -m pytest

# The tests start a Redis of their own, from the system's package.
redis:
	@command -v redis-server >/dev/null || { \
		apt-get update -qq && apt-get install -qq -y --no-install-recommends redis-server; } || { \
		echo "redis-server is missing: apt-get install redis-server" >&2; exit 1; }

# Thousands of aborted streams and slow clients; some minutes. Needs slowhttptest from Debian.
soak: .venv/dev
	$(BIN)/python -m tests.bench.soak

# One worker beside a Flask hello-world, some minutes. Needs wrk from Debian.
bench: .venv/dev
	$(BIN)/python -m tests.bench.throughput
	$(BIN)/python -m tests.bench.sticky

lint: .venv/dev
	$(BIN)/flake8
	$(BIN)/mypy

.venv/run: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/dev: requirements-dev.txt .venv/run
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@
