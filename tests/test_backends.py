"""Backends, explain, precision, environment variables, threads, fork, the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

import crossmedia_fast as cmf
from crossmedia_fast import native

from .conv_act_pool_cases import POOLS, gradients, make
from .tolerances import VALUES, assert_within

needs_native = pytest.mark.skipif(
    native.module is None, reason=f"needs the native module: {native.reason}"
)


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_backends_has_a_row_a_backend() -> None:
    rows = {row.name: row for row in cmf.backends()}
    assert set(rows) == {"cpu", "cuda", "triton", "reference"}
    assert rows["reference"].available
    for row in rows.values():
        assert row.available == (not row.reason)
        assert "float32" in row.dtypes
        assert row.name in str(cmf.backends())


@pytest.mark.skipif(
    os.environ.get("CROSSMEDIA_FAST_NATIVE") == "0", reason="built without the native module"
)
def test_the_native_module_is_there() -> None:
    """Without it most other tests would compare the reference with itself."""
    assert native.module is not None, native.reason


def test_use_backend_and_the_argument() -> None:
    tensors = make()
    with cmf.use_backend("reference"):
        assert cmf.explain(*tensors).backend == "reference"
        reference = cmf.conv_act_pool2d(*tensors)
        with cmf.use_backend(None):
            assert cmf.explain(*tensors).backend == cmf.explain(*tensors, backend=None).backend
    assert torch.equal(reference, cmf.conv_act_pool2d_reference(*tensors))
    assert torch.equal(reference, cmf.conv_act_pool2d(*tensors, backend="reference"))
    with cmf.use_backend("cuda"), pytest.raises(NotImplementedError, match="cuda"):
        cmf.conv_act_pool2d(*tensors)
    with pytest.raises(ValueError, match="gpu"), cmf.use_backend("gpu"):
        pass
    with pytest.raises(RuntimeError, match="inside"), cmf.use_backend("reference"):
        raise RuntimeError("inside")
    assert cmf.explain(*tensors).backend == ("cpu" if native.module else "reference")


@needs_native
def test_explain_says_why_not() -> None:
    tensors = make()
    plan = cmf.explain(*tensors)
    assert (plan.backend, plan.algorithm) == ("cpu", "direct")
    for name in ("cuda", "triton", "reference", "convolution", "epilogue"):
        assert f"{name}: " in str(plan)
    for other, algorithm in (
        (make(2, 64, size=(50, 50), out_channels=64), "winograd"),
        (make(2, 64, size=(50, 50), out_channels=64, channels_last=True), "winograd"),
        (make(channels_last=True, dtype=torch.float64), "epilogue"),
    ):
        plan = cmf.explain(*other)
        assert (plan.backend, plan.algorithm) == ("cpu", algorithm)
        assert "not algorithm direct: " in str(plan)
    doubles = make(channels_last=True, dtype=torch.float64)
    nothing = cmf.explain(*doubles, activation="identity", pool="none")
    assert nothing.algorithm == "convolution"
    with pytest.raises(ValueError, match="groups"):
        cmf.explain(*tensors, groups=5)
    assert cmf.explain(torch.zeros(3), op="gan_generator_loss").backend == "cpu"
    with pytest.raises(ValueError, match="op must be"):
        cmf.explain(*tensors, op="conv")


def test_conv_precision() -> None:
    assert cmf.get_conv_precision() == "high"
    with cmf.conv_precision("highest"):
        assert cmf.get_conv_precision() == "highest"
        cmf.set_conv_precision("medium")
    assert cmf.get_conv_precision() == "high"
    with pytest.raises(ValueError, match="low"):
        cmf.set_conv_precision("low")
    with pytest.raises(TypeError):
        cmf.set_conv_precision(1)  # type: ignore[arg-type]


EXPLAIN = """
import torch, crossmedia_fast as cmf
plan = cmf.explain(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 3, 3))
print(plan.backend, cmf.get_conv_precision())
"""


def test_environment_variables() -> None:
    done = run_python(
        EXPLAIN, CROSSMEDIA_FAST_BACKEND="reference", CROSSMEDIA_FAST_PRECISION="highest"
    )
    assert done.stdout.split() == ["reference", "highest"]
    done = run_python(EXPLAIN, CROSSMEDIA_FAST_BACKEND="nothing")
    assert done.returncode != 0
    assert "CROSSMEDIA_FAST_BACKEND must be one of" in done.stderr


def test_without_the_native_module_the_reference_runs_and_says_why() -> None:
    code = """
import sys
sys.modules["crossmedia_fast._native"] = None  # what an installation without it looks like
import torch, crossmedia_fast as cmf
x, w = torch.randn(1, 1, 8, 8), torch.randn(2, 1, 3, 3)
assert torch.equal(cmf.conv_act_pool2d(x, w), cmf.conv_act_pool2d_reference(x, w))
row = next(row for row in cmf.backends() if row.name == "cpu")
assert not row.available and "native module" in row.reason, row
loss = cmf.gan_discriminator_loss(torch.zeros(3), torch.zeros(3))
try:
    cmf.conv_act_pool2d(x, w, backend="cpu")
except NotImplementedError as error:
    print("refused:", error)
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert "refused: backend 'cpu' can't run here" in done.stdout


OPS = """
import sys, torch
sys.path.insert(0, ".")
import crossmedia_fast as cmf
from crossmedia_fast import native
from tests.conv_act_pool_cases import POOLS, gradients, make
from tests.tolerances import GRADIENTS, VALUES, assert_within
assert native.module.isa() == sys.argv[1] if len(sys.argv) > 1 else True
for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
    for channels_last in (False, True):
        for pool in ("max2", "max3s2", "avg2", "avg3s2p1", "none"):
            for activation in ("relu", "gelu", "tanh"):
                t = make(size=(13, 37), out_channels=19, dtype=dtype, channels_last=channels_last)
                arguments = {"activation": activation, **POOLS[pool]}
                want = cmf.conv_act_pool2d_reference(*[x.double() for x in t], **arguments)
                dy = torch.ones_like(want)
                y, grads = gradients(cmf.conv_act_pool2d, t, dy, **arguments)
                assert_within(y.detach(), want, VALUES[dtype])
                if dtype in GRADIENTS:
                    d = [x.double() for x in t]
                    _, expected = gradients(cmf.conv_act_pool2d_reference, d, dy, **arguments)
                    for a, b in zip(grads, expected):
                        assert_within(a, b, GRADIENTS[dtype])
print("all right on", native.module.isa())
"""


@needs_native
@pytest.mark.parametrize(
    "isa", [row[0] for row in native.module.isas() if not row[2]] if native.module else []
)
def test_every_instruction_set_that_runs_here(isa: str) -> None:
    done = run_python(OPS, CROSSMEDIA_FAST_ISA=isa)
    assert done.stdout.strip() == f"all right on {isa}", done.stderr[-2000:]


@needs_native
def test_an_unknown_instruction_set_is_an_import_reason() -> None:
    code = "import crossmedia_fast as cmf; print(cmf.backends())"
    done = run_python(code, CROSSMEDIA_FAST_ISA="avx1024")
    assert done.returncode == 0
    assert "CROSSMEDIA_FAST_ISA must be one of baseline" in done.stdout


@needs_native
def test_the_same_bits_for_any_number_of_threads() -> None:
    before = torch.get_num_threads()
    results: list[Any] = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            outputs = []
            for channels_last in (False, True):
                # the convolution itself need not give the same bits: 1×1 of one channel does
                x = make(4, 1, (64, 65), channels_last=channels_last)[0]
                weight = torch.ones(24, 1, 1, 1)
                for pool in ("max2", "max3s2", "avg2", "none"):
                    x.requires_grad_()
                    bias = torch.linspace(-1, 1, 24).requires_grad_()
                    y = cmf.conv_act_pool2d(x, weight, bias, activation="silu", **POOLS[pool])
                    outputs += [y.detach(), torch.autograd.grad(y.square().sum(), bias)[0]]
            results.append(outputs)
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_can_call_the_ops() -> None:
    code = """
import os, torch, crossmedia_fast as cmf
from crossmedia_fast.ops.conv_act_pool import registration
from crossmedia_fast.ops.conv_act_pool.arguments import check_pool
torch.set_num_threads(2)
z = torch.randn(8, 16, 64, 64)
pool = check_pool("relu", None, "max", 2, None, 0, False, True)
logits = torch.randn(200_000)
want = registration.act_pool2d(z, None, pool, False, "cpu"), cmf.gan_generator_loss(logits)
child = os.fork()
if child == 0:
    got = registration.act_pool2d(z, None, pool, False, "cpu"), cmf.gan_generator_loss(logits)
    torch.set_num_threads(1)  # PyTorch's own comparison would wait for the lost pool
    os._exit(0 if all(torch.equal(a, b) for a, b in zip(want, got)) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
print("done")
"""
    if native.module is None:
        pytest.skip("needs the native module")
    done = run_python(code)
    assert done.stdout.strip() == "done", done.stderr


@needs_native
def test_concurrent_callers() -> None:
    from concurrent.futures import ThreadPoolExecutor

    cases = [make(seed=i, size=(40, 41), out_channels=16) for i in range(8)]
    dy = torch.randn(cmf.conv_act_pool2d(*cases[0]).shape)
    wanted = [gradients(cmf.conv_act_pool2d_reference, case, dy) for case in cases]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda case: gradients(cmf.conv_act_pool2d, case, dy), cases * 4))
    for (y, grads), (want, want_grads) in zip(results, wanted * 4, strict=True):
        assert_within(y.detach(), want.detach(), VALUES[torch.float32])
        assert len(grads) == len(want_grads)


@needs_native
def test_one_openmp_runtime() -> None:
    from threadpoolctl import threadpool_info

    cmf.conv_act_pool2d(*make(size=(64, 64), out_channels=32))
    runtimes = {p["filepath"] for p in threadpool_info() if p["user_api"] == "openmp"}
    assert len(runtimes) <= 1, runtimes


def test_subnormals_survive_the_import() -> None:
    # a library linked with -ffast-math would flush them to zero for the whole process
    assert (torch.tensor(1e-40) * 1.0).item() > 0
    assert 5e-324 * 1.0 > 0


def test_info() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "crossmedia_fast", "info", "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    facts = json.loads(done.stdout)
    assert facts["crossmedia_fast"] == cmf.__version__
    assert any("reference" in line for line in facts["backends"])
    plain = subprocess.run(
        [sys.executable, "-m", "crossmedia_fast", "info"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "native module" in plain.stdout


def test_an_unknown_command_is_exit_2() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "crossmedia_fast", "fly"],
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
