# The verbs of the wheel; included by the Makefile.

.PHONY: wheel wheel-test baseline-x86

$(VENV)/wheel.stamp: $(VENV)/installed.stamp
	$(PIP) install --quiet -c constraints.txt $(call extra,wheel)
	touch $@

# libgomp.so.1 stays outside: PyTorch's wheels bring a library of that soname, and a second OpenMP runtime
# in the process would keep a pool of threads that fights with the first.
wheel: $(VENV)/wheel.stamp  ## Build a manylinux wheel without CUDA kernels into dist/.
	rm -rf build/wheel dist
	CROSSMEDIA_FAST_CUDA=0 PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(PIP) wheel --quiet --no-deps \
	  --no-build-isolation -C build-dir=build/wheel-{wheel_tag} -w build/wheel .
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(PYTHON) -m auditwheel repair --exclude libgomp.so.1 -w dist build/wheel/*.whl

wheel-test: wheel  ## Install the wheel where there is no compiler and run the tests; ARGS="--torch 2.6.0" names PyTorch's version.
	$(PYTHON) packaging/test_wheel.py $(ARGS)

# AVX is what a processor of the baseline lacks; any instruction of a wider set is a fault there.
QEMU_CPU ?= Nehalem
baseline-x86:  ## Run the C++ tests on an emulated x86-64 processor without AVX (Debian: qemu-user).
	$(NATIVE_TESTS) -B build/native-test -DCMAKE_BUILD_TYPE=Release > /dev/null
	cmake --build build/native-test --target cmf_tests
	qemu-x86_64 -cpu $(QEMU_CPU) build/native-test/cmf_tests $(ARGS)
