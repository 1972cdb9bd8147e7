# The benchmark verbs; included by the Makefile. BENCH_PYTHON may name another environment's Python.
BENCH_PYTHON ?= $(PYTHON)
BENCH_SUITES := inference training losses overhead models
BENCH_ARGS ?=

.PHONY: bench bench-full
bench: $(if $(filter $(BENCH_PYTHON),$(PYTHON)),$(VENV)/installed.stamp)  ## Compare with the peers, a few shapes of each suite (about 5 minutes).
	set -e; for suite in $(BENCH_SUITES); do \
	  $(BENCH_PYTHON) -m benchmarks.compare --suite $$suite --shapes quick --rounds 5 \
	    --out build/bench/$$suite.json $(BENCH_ARGS); done

bench-full: $(if $(filter $(BENCH_PYTHON),$(PYTHON)),$(VENV)/installed.stamp)  ## Compare on every shape; writes benchmarks/results/<machine>/.
	set -e; for suite in $(BENCH_SUITES); do \
	  $(BENCH_PYTHON) -m benchmarks.compare --suite $$suite --shapes all --rounds 11 $(BENCH_ARGS); done
