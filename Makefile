# What one types here. Every target sets up what it needs in .venv first.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: run demo smoke test lint soak overload simulate bench bench-against bench-peers programs \
	clients

# Start the router for real: configured by the environment, against the real backend.
run: .venv/run
	exec $(BIN)/gunicorn

# Watch the main job done against a scripted backend; ends with Ctrl-C.
demo: .venv/run
	exec $(BIN)/python -m tests.support.demo

# Ask the real upstream what the project assumes of it, a minute; with a CHUTES_API_KEY it costs a few
# hundred tokens, and says so first.
smoke: .venv/run
	$(BIN)/python -m tests.support.smoke

test: lint programs clients
	$(BIN)/python -m pytest

# The tests start a Redis, an nginx and a Prometheus of their own and ask the tools that deploy/ is
# made for, from the system's packages (program:package). Run level 1 keeps the packages from
# starting a server each.
PROGRAMS = redis-server:redis-server nginx:nginx-light prometheus:prometheus \
	systemd-analyze:systemd kubectl:kubernetes-client chromium:chromium \
	buildah:buildah debootstrap:debootstrap
programs:
	@export PATH="$$PATH:/usr/sbin:/sbin"; missing=; for each in $(PROGRAMS); do \
		command -v "$${each%:*}" >/dev/null || missing="$$missing $${each#*:}"; done; \
	test -z "$$missing" || { apt-get update -qq && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
		apt-get install -qq -y --no-install-recommends $$missing >/dev/null; } || { \
		echo "missing, as root: apt-get install$$missing" >&2; exit 1; }

# Other people's clients, as the tests put them before the router; a Node.js comes with them, which
# is told to trust whom the system trusts, as pip does.
clients: .venv/clients/ready tests/clients/node_modules/.package-lock.json
.venv/clients/ready: tests/clients/requirements.txt .venv/run
	$(PYTHON) -m venv --clear .venv/clients
	.venv/clients/bin/pip install --quiet --disable-pip-version-check -r $<
	touch $@
tests/clients/node_modules/.package-lock.json: tests/clients/package-lock.json .venv/clients/ready
	export PATH="$(CURDIR)/.venv/clients/bin:$$PATH"; cd tests/clients && \
		NODE_USE_SYSTEM_CA=1 npm ci --ignore-scripts --loglevel=error >/dev/null
	touch $@

# Thousands of aborted streams and slow clients; some minutes. Needs slowhttptest from Debian.
soak: .venv/dev
	$(BIN)/python -m tests.bench.soak

# Two minutes at twice the capacity, through nginx, with workers replaced in the middle.
overload: .venv/dev programs
	$(BIN)/python -m tests.bench.overload

# The choice of models in a model of the fleet, some minutes of one core; writes
# tests/simulate/README.md.
simulate: .venv/dev
	$(BIN)/python -m tests.simulate

# What one worker can do and what it costs, twenty minutes. Needs wrk from Debian.
bench: .venv/dev programs
	$(BIN)/python -m tests.bench

# The router of the working tree beside that of a commit, four minutes; prints ratios. For less:
# make bench-against COMMIT=HEAD~1 ROWS="direct paced" ROUNDS=3
bench-against: .venv/dev
	$(BIN)/python -m tests.bench.against $(if $(ROUNDS),--rounds $(ROUNDS)) $(COMMIT) $(ROWS)

# The same beside other routers, ten minutes. Needs wrk and nginx from Debian.
bench-peers: .venv/dev programs .venv/peers/ready
	$(BIN)/python -m tests.bench.peers .venv/peers/bin

# Other people's programs, in an environment of their own to be thrown away.
.venv/peers/ready: tests/bench/requirements-peers.txt .venv/run
	$(PYTHON) -m venv --clear .venv/peers
	.venv/peers/bin/pip install --quiet --disable-pip-version-check -r $<
	touch $@

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
