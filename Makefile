# Everything runs in environments that make sets up here, in .venv and .venv-proto.
# `make help` lists the targets.

PYTHON ?= python3
# Passed on to pytest by `make test` and to `relayswarm up` by `make demo`.
ARGS ?=

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
PROTO_VENV := .venv-proto
RAY_VENV := .venv-ray
INTEGRATIONS_VENV := .venv-integrations
FUZZ_VENV := .venv-fuzz
DOCS_VENV := .venv-docs
PIP_FLAGS := --disable-pip-version-check --no-input

# Shows of pip's many lines the large downloads and the two ends.
define pip_install
$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt $(1) | sed -u -n \
	-e 's|^ *Downloading \(.*/\)*\([^ /]*\) (\([0-9.]* MB\)).*|  downloading \2 (\3)|p' \
	-e 's|^Installing collected packages.*|  installing|p' \
	-e 's|^Successfully installed.*|  done|p'
endef

APT_INSTALL := systemtests/apt_install.sh

.PHONY: help install demo test mutants soak model-check soak-exchange kills test-ray test-integrations fuzz test-page test-monitoring test-compose test-sites test-networks test-links test-dial-only test-etcd kubectl check lint types imports docs pictures docs-site test-docs snapshots figures tables tables-slice proto proto-check proto-lint format clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.runtime ## Set up .venv, with the command relayswarm in it

demo: $(VENV)/.runtime ## Eight peers learn digits on this machine; report in reports/demo
	@$(BIN)/relayswarm up examples/demo.toml --report reports/demo $(ARGS)

test: $(VENV)/.dev kubectl ## Run the tests (ARGS='-k relay -x' goes to pytest)
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile --durations=10 --durations-min=1 $(ARGS)

mutants: $(VENV)/.dev ## Break each mechanism of docs/mechanisms.md, see its test fail: half an hour (ARGS='--only token' for some)
	@$(BIN)/python tools/mutants.py $(ARGS)

soak-exchange: $(VENV)/.dev ## 200 kills of peers at random moments of exchanges, some minutes (SOAK_SEED=2 for others)
	@SOAK_KILLS=$${SOAK_KILLS:-200} $(BIN)/python -m pytest -q -s tests/daemon/test_exchange_soak.py $(ARGS)

soak: $(VENV)/.dev ## Random faults of all kinds on 8 daemons for 30 min (SOAK_SECONDS, SOAK_SEED choose others; SOAK_HEAL=1: long without a coordinator)
	@SOAK_SECONDS=$${SOAK_SECONDS:-1800} SOAK_SEED=$${SOAK_SEED:-1} SOAK_HEAL=$${SOAK_HEAL:-0} \
		$(BIN)/python -m pytest -q tests/daemon/test_soak.py -o log_cli=true --log-cli-level=INFO $(ARGS)

model-check: $(VENV)/.dev ## Trees without a coordinator: faults at all places (of 4 and 5 bridges at some), 30 graphs (MODEL_CHECK_STATES, MODEL_CHECK_SEEDS)
	@$(BIN)/python -m pytest -q -n 2 tests/peer/exploring_healing.py $(ARGS)

kills: $(VENV)/.runtime ## Kill each of 8 peers in turn, a run each: ends well, within 3 points (10 min)
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/local_swarm.py killed --check

test-ray: $(RAY_VENV)/.ray ## Sweep on a local Ray, and compare the rows with those of processes
	@$(RAY_VENV)/bin/python -m pytest -q -k 'ray or parquet' tests/peer/sweep/test_sweep.py $(ARGS)

# Their tests, and those of two tasks, are skipped by `make test`, which has none of these libraries.
test-integrations: $(INTEGRATIONS_VENV)/.extras ## Swarms in the Trainers of Hugging Face and Lightning, DistilBERT, DP-SGD by Opacus
	@$(INTEGRATIONS_VENV)/bin/python -m pytest -q tests/integrations \
		tests/peer/tasks/test_text_classification.py tests/peer/tasks/test_dp_sgd.py $(ARGS)

# Target and number of inputs, over a million in all; what a target finds is left in .fuzz/.
FUZZ := messages:150000 exchanges:100000 lattice:100000 config:250000 views:250000 downloads:200000 checkpoints:50000 readers:10000 bpdus:20000 answers:20000 requests:5000

fuzz: $(FUZZ_VENV)/.atheris ## Over a million inputs, guided by coverage, to the readers of bytes from outside
	@mkdir -p .fuzz
	@printf '%s\n' $(FUZZ) | OMP_NUM_THREADS=1 xargs -P 2 -I {} bash -eu -o pipefail -c ' \
		target=$$(cut -d: -f1 <<< {}); \
		$(FUZZ_VENV)/bin/python tests/fuzz/atheris_driver.py $$target .fuzz/$$target -runs=$$(cut -d: -f2 <<< {}) \
			-artifact_prefix=.fuzz/$$target- $(ARGS) > .fuzz/$$target.log 2>&1 \
			|| { tail -n 40 .fuzz/$$target.log; echo "fuzz: $$target failed; see .fuzz/$$target.log"; exit 255; }; \
		sed -n -e "s/^Done/$$target:/p" -e "s/^stat::peak_rss_mb: */$$target: peak MB /p" .fuzz/$$target.log'

test-page: $(VENV)/.dev ## The coordinator's page in Chromium (installs it; needs apt and root)
	@command -v chromium >/dev/null || { $(APT_INSTALL) chromium; }
	@$(BIN)/python -m pytest -q systemtests/test_page.py

test-monitoring: $(VENV)/.dev ## Rules, alerts and every panel's queries, on a real Prometheus (installs it; needs apt and root)
	@command -v promtool >/dev/null || { $(APT_INSTALL) prometheus; }
	@promtool check config deploy/prometheus/prometheus.yml
	@promtool test rules deploy/prometheus/rules_test.yml
	@$(BIN)/python -m pytest -q systemtests/test_monitoring.py

COMPOSE_PACKAGES := docker.io docker-compose debootstrap iptables runc prometheus

# On an engine that it starts itself, with base images made from Debian's packages: no registry.
test-compose: $(VENV)/.dev ## docker-compose.yml on a real engine, up to half an hour (installs it; needs apt and root)
	@dpkg -s $(COMPOSE_PACKAGES) >/dev/null 2>&1 || { $(APT_INSTALL) $(COMPOSE_PACKAGES); }
	@$(BIN)/python -m pytest -q -s systemtests/test_compose.py

test-sites: $(VENV)/.dev ## Three sites, each a compose project on a network of its own (installs an engine; needs apt and root)
	@dpkg -s $(COMPOSE_PACKAGES) >/dev/null 2>&1 || { $(APT_INSTALL) $(COMPOSE_PACKAGES); }
	@$(BIN)/python -m pytest -q -s systemtests/test_sites.py

NETWORK_PACKAGES := iptables iproute2 procps

test-networks: $(VENV)/.dev ## A peer outside the cluster's network joins through ports of a node (needs apt and root)
	@dpkg -s $(NETWORK_PACKAGES) >/dev/null 2>&1 || { $(APT_INSTALL) $(NETWORK_PACKAGES); }
	@$(BIN)/python -m pytest -q systemtests/test_two_networks.py

test-dial-only: $(VENV)/.dev ## Five of six sites behind firewalls that let nothing in, 5 min (needs apt and root)
	@dpkg -s $(NETWORK_PACKAGES) >/dev/null 2>&1 || { $(APT_INSTALL) $(NETWORK_PACKAGES); }
	@$(BIN)/python -m pytest -q -s systemtests/test_dial_only.py

test-links: $(VENV)/.dev ## Peers on links that lose packets or are slow, 5 min (needs apt and root)
	@dpkg -s $(NETWORK_PACKAGES) >/dev/null 2>&1 || { $(APT_INSTALL) $(NETWORK_PACKAGES); }
	@$(BIN)/python -m pytest -q -s systemtests/test_links.py

test-etcd: $(VENV)/.etcd ## Several coordinators with a real etcd: one leads, another takes over (installs it; needs apt and root)
	@command -v etcd >/dev/null || { $(APT_INSTALL) etcd-server; }
	@$(BIN)/python -m pytest -q -rP systemtests/test_etcd.py $(ARGS)

check: lint types imports proto-check proto-lint ## Everything that needs no run of the code
	@echo "check: all passed"

lint: $(VENV)/.dev ## ruff: rules and format
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

types: $(VENV)/.dev ## mypy, strict
	@$(BIN)/mypy
	@$(BIN)/mypy tools

# Without its cache, which does not notice that a module of another file has come or gone.
imports: $(VENV)/.dev ## import-linter: who may import whom
	@$(BIN)/lint-imports --no-logo --no-cache

docs: $(VENV)/.dev ## Generate what follows from the code: references, tables, the dashboard
	@$(BIN)/python tools/generate_config_reference.py
	@$(BIN)/python tools/generate_tables.py
	@$(BIN)/python tools/generate_api_reference.py
	@$(BIN)/python tools/generate_dashboards.py

pictures: $(VENV)/.dev ## Draw the pictures of docs/concepts.md
	@$(BIN)/python tools/generate_pictures.py

test-docs: $(VENV)/.dev ## Run the commands of every page of the documentation as they stand, half an hour
	@$(BIN)/python -m pytest -q -n 2 --dist worksteal --durations=0 --durations-min=1 tests/docs/running_pages.py $(ARGS)

docs-site: $(DOCS_VENV)/.docs ## The documentation as a site in .site, its links checked
	@NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build -q
	@echo "docs-site: .site/index.html"

snapshots: $(VENV)/.dev ## Take what is public now as what is promised (docs/stability.md)
	@$(BIN)/python tools/public_interface.py

# In the order of their names; ARGS='figure-2 --tune' makes one of them and searches its rates.
figures: $(VENV)/.dev ## Regenerate the figures of docs/figures.md
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.figures $(ARGS)

# With the committed rates, into reports/tables; resumable. DATA names the folder that holds fashion-mnist.
tables: $(VENV)/.dev ## The papers' tables of docs/results.md, about an hour on 2 cores (DATA=folder; ARGS=relaysgd-5 for one)
	@test -n "$(DATA)" || { echo "DATA is not set: name the folder that holds fashion-mnist"; exit 2; }
	@$(BIN)/python benchmarks/paper_tables.py --data-dir $(DATA) --output reports/tables $(ARGS)

tables-slice: $(VENV)/.dev ## One seed of the most heterogeneous column, begun within 4 minutes (DATA=folder)
	@test -n "$(DATA)" || { echo "DATA is not set: name the folder that holds fashion-mnist"; exit 2; }
	@$(BIN)/python benchmarks/paper_tables.py relaysgd-1-long --data-dir $(DATA) --output reports/tables-slice --seeds 1 --minutes 4 $(ARGS)

proto: $(PROTO_VENV)/.proto ## Generate the code of the wire contract
	@$(PROTO_VENV)/bin/python tools/generate_proto.py

proto-check: $(PROTO_VENV)/.proto ## Is the committed generated code fresh?
	@$(PROTO_VENV)/bin/python tools/generate_proto.py --check

proto-lint: $(VENV)/.dev ## buf: style of the wire contract, and what breaks with the last tag's
	@$(BIN)/buf lint
	@$(BIN)/python tools/check_breaking.py --buf $(BIN)/buf

format: $(VENV)/.dev ## Let ruff format and mend what it can
	@$(BIN)/ruff format
	@$(BIN)/ruff check --fix

kubectl: $(VENV)/.made ## Fetch kubectl into .venv if there is none, for the tests of deploy/kustomize
	@PATH="$$PATH:$(BIN)" command -v kubectl >/dev/null || $(BIN)/python tools/get_kubectl.py $(BIN)

clean: ## Remove the environments, caches and reports
	rm -rf $(VENV) $(PROTO_VENV) $(RAY_VENV) $(INTEGRATIONS_VENV) $(FUZZ_VENV) $(DOCS_VENV) .fuzz .site reports dist .mypy_cache .ruff_cache .pytest_cache \
		.hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- environments: made once, brought up to date when a file that they depend on changes

define new_venv
@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON): not found; install Python 3.11 or newer, or say make PYTHON=/path/to/python3.11" >&2; exit 1; }
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "$(PYTHON) is Python %d.%d, but relayswarm needs 3.11 or newer; say make PYTHON=/path/to/python3.11" % sys.version_info[:2])'
@echo "Making $(@D) with $$($(PYTHON) --version)"
@$(PYTHON) -m venv $(@D)
@touch $@
endef

$(VENV)/.made:
	$(new_venv)

$(PROTO_VENV)/.made:
	$(new_venv)

$(RAY_VENV)/.made:
	$(new_venv)

$(INTEGRATIONS_VENV)/.made:
	$(new_venv)

$(FUZZ_VENV)/.made:
	$(new_venv)

$(DOCS_VENV)/.made:
	$(new_venv)

$(VENV)/.runtime: $(VENV)/.made pyproject.toml constraints.txt
	@echo "Installing relayswarm (the first time takes a few minutes, mostly PyTorch)"
	@$(call pip_install,-e .)
	@touch $@

$(VENV)/.dev: $(VENV)/.made pyproject.toml constraints.txt
	@echo "Installing relayswarm and its development tools (the first time takes a few minutes)"
	@$(call pip_install,-e '.[dev]')
	@touch $(VENV)/.runtime $@

# Only the generator, as the `proto` extra pins it: its older protobuf suits no other environment.
$(PROTO_VENV)/.proto: $(PROTO_VENV)/.made pyproject.toml
	@echo "Installing the generator of the wire contract"
	@$(PROTO_VENV)/bin/python -c 'import tomllib; \
		project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
		print(*project["optional-dependencies"]["proto"], sep="\n")' > $(PROTO_VENV)/requirements.txt
	@$(PROTO_VENV)/bin/python -m pip install $(PIP_FLAGS) -q -r $(PROTO_VENV)/requirements.txt
	@touch $@

$(VENV)/.etcd: $(VENV)/.dev
	@echo "Installing the client of etcd"
	@$(call pip_install,-e '.[etcd]')
	@touch $@

# Some extras alone; all else is that of the development environment.
define beside_dev
@$(@D)/bin/python -c 'import pathlib, sysconfig; \
	own, dev = pathlib.Path(sysconfig.get_path("purelib")), sysconfig.get_path("purelib", vars={"base": "$(CURDIR)/$(VENV)"}); \
	(own / "dev.pth").write_text(f"import site; site.addsitedir({dev!r})\n")'
@$(@D)/bin/python -m pip install $(PIP_FLAGS) -q -c constraints.txt \
	$$($(@D)/bin/python -c 'import sys, tomllib; \
	extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; \
	print(*(each for name in sys.argv[1:] for each in extras[name]), sep="\n")' $(1))
@touch $@
endef

$(RAY_VENV)/.ray: $(RAY_VENV)/.made $(VENV)/.dev
	@echo "Installing Ray and Arrow"
	$(call beside_dev,ray parquet)

$(INTEGRATIONS_VENV)/.extras: $(INTEGRATIONS_VENV)/.made $(VENV)/.dev
	@echo "Installing Transformers, Lightning and Opacus"
	$(call beside_dev,transformers lightning privacy)

$(FUZZ_VENV)/.atheris: $(FUZZ_VENV)/.made $(VENV)/.dev
	@echo "Installing Atheris"
	$(call beside_dev,fuzz)

# The `docs` extra alone: the site is made from text, and needs nothing of ours.
$(DOCS_VENV)/.docs: $(DOCS_VENV)/.made pyproject.toml constraints.txt
	@echo "Installing MkDocs"
	@$(DOCS_VENV)/bin/python -m pip install $(PIP_FLAGS) -q -c constraints.txt \
		$$($(DOCS_VENV)/bin/python -c 'import tomllib; \
		print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"])')
	@touch $@
