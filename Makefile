# `make run` and `make test` set up all that they need, on a bare Debian 12 with Python 3.11.
# ARGS are handed on: make run ARGS=--log.level=debug, make test ARGS="-k ipvs".

VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
# Most tests wait for the kernel, for clocks and for each other: more of them at once than CPUs.
WORKERS ?= 4
export PATH := $(CURDIR)/$(BIN):$(PATH):/usr/sbin:/sbin

# DEMO=short plays it in less than two minutes; DEMO=write in full, and renews README.md's summary.
DEMO ?=

.PHONY: run test demo lint generate bench screenshots lock clean

run: $(VENV)/run.stamp
	@$(BIN)/python -m vipscope $(ARGS)

# With lint's tools, for a test lints what docs/contributing-by-example.md makes.
test: $(VENV)/lint.stamp
	@tools/setup system $(VENV)
	@$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(if $(ARGS),,--numprocesses=$(WORKERS) --dist=worksteal) $(ARGS)
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report $(if $(ARGS),--fail-under=0)

demo: $(VENV)/$(if $(filter write,$(DEMO)),generate,run).stamp
	@tools/setup system $(VENV) conntrack ip ipset iptables-legacy-restore nft \
	  prometheus prometheus-alertmanager
	@$(BIN)/python -m demo $(if $(DEMO),--$(DEMO))

lint: $(VENV)/lint.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

generate: $(VENV)/generate.stamp
	$(BIN)/python -m tools.generate

bench: $(VENV)/test.stamp
	@tools/setup system $(VENV)
	$(BIN)/python -m tests.bench $(ARGS)

# Takes the pictures of the page that README.md shows.
screenshots: $(VENV)/test.stamp
	@tools/setup system $(VENV)
	$(BIN)/python -m tests.screenshots

# Renews the pinned requirements, from pyproject.toml and requirements/*.in.
lock: $(VENV)/lock/bin/pip-compile
	for name in run build generate test lint; do \
	  source=requirements/$$name.in; test $$name != run || source=pyproject.toml; \
	  CUSTOM_COMPILE_COMMAND="make lock" $< --quiet --upgrade --generate-hashes --strip-extras \
	    --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-emit-options \
	    --output-file requirements/$$name.txt $$source || exit; \
	done

clean:
	rm -rf $(VENV) .coverage* .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist
	find alerts dashboards demo exporter tests tools -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/made.stamp: tools/setup
	@tools/setup venv $(VENV)
	@touch $@

$(VENV)/%.stamp: requirements/%.txt $(VENV)/made.stamp
	$(BIN)/python -m pip install --quiet --require-hashes --requirement $<
	@touch $@

$(VENV)/lock/bin/pip-compile: $(VENV)/made.stamp
	$(BIN)/python -m venv $(VENV)/lock
	$(VENV)/lock/bin/pip install --quiet pip-tools==7.6.2
