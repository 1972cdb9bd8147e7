"""What people do with models: all of it works with a fused one as before."""

from __future__ import annotations

import copy
import io
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import crossmedia_fast as cmf

from .fuse_models import VGG11BN, ConvBlock, DenseBlock, Inception, LeNetReLU, ResNet18, settle
from .tolerances import WINOGRAD, assert_within

TOLERANCE = 5 * WINOGRAD[3]


def make(cls: Any) -> tuple[nn.Module, nn.Module, Tensor]:
    """The model, its fused twin, and an input."""
    torch.manual_seed(0)
    model = settle(cls())
    return model, cmf.fuse(copy.deepcopy(model)), torch.randn(cls.shape)


def same(fused: Any, model: Any, x: Tensor) -> None:
    with torch.no_grad():
        actual, expected = fused(x), model(x)
    if isinstance(expected, Tensor):
        actual, expected = (actual,), (expected,)
    for a, e in zip(actual, expected, strict=True):
        assert_within(a, e, TOLERANCE)


def fused_count(model: nn.Module) -> int:
    return sum(row.fused for row in cmf.fusion_report(model))


def test_fuse_is_in_place_and_keeps_everything() -> None:
    model = settle(ResNet18())
    modules, parameters = list(model.modules()), list(model.parameters())
    buffers, classes = list(model.buffers()), [type(m) for m in model.modules()]
    text = repr(model)
    fused = cmf.fuse(model)
    assert fused is model
    for before, now in (
        (modules, model.modules()),
        (parameters, model.parameters()),
        (buffers, model.buffers()),
    ):
        assert all(a is b for a, b in zip(before, now, strict=True))
    assert repr(model) == text
    for module, cls in zip(model.modules(), classes, strict=True):
        assert isinstance(module, cls)
        assert type(module).__name__ == cls.__name__
    assert type(model.layer1[0].conv1) is nn.Conv2d
    assert not model.training


def test_fuse_twice_and_unfuse_twice() -> None:
    model, fused, x = make(VGG11BN)
    count = fused_count(fused)
    cmf.fuse(cmf.fuse(fused))
    assert fused_count(fused) == count
    same(fused, model, x)
    cmf.unfuse(cmf.unfuse(fused))
    assert fused_count(fused) == 0
    assert {row.reason for row in cmf.fusion_report(fused)} == {"cmf.fuse has not been called"}
    assert torch.equal(fused(x), model(x))


@pytest.mark.parametrize("cls", [ResNet18, DenseBlock, Inception], ids=lambda c: c.__name__)
def test_copies_and_pickles(cls: Any, tmp_path: Path) -> None:
    model, fused, x = make(cls)
    twin = copy.deepcopy(fused)
    assert fused_count(twin) == fused_count(fused)
    loaded = pickle.loads(pickle.dumps(fused))
    path = tmp_path / "model.pt"
    torch.save(fused, path)
    saved = torch.load(path, weights_only=False)
    for other in (twin, loaded, saved, copy.copy(fused)):
        same(other, model, x)
        assert isinstance(other, cls)
        assert type(other) is type(fused)
    for other in (twin, loaded, saved):
        for a, b in zip(other.parameters(), fused.parameters(), strict=True):
            assert a is not b
            a.data.mul_(1.5)
    with torch.no_grad():
        expected = copy.deepcopy(cmf.unfuse(copy.deepcopy(twin)))
    for other in (twin, loaded, saved):  # each runs with its own weights
        same(other, expected, x)
    same(fused, model, x)
    # and each is unfused by itself
    assert type(cmf.unfuse(loaded)) is cls
    assert fused_count(twin) > 0


def test_a_state_dict_through_a_file() -> None:
    model, fused, x = make(VGG11BN)
    buffer = io.BytesIO()
    torch.save(fused.state_dict(), buffer)
    buffer.seek(0)
    other = VGG11BN().eval()
    other.load_state_dict(torch.load(buffer), strict=True)
    same(other, model, x)
    fused.load_state_dict(model.state_dict(), strict=True, assign=True)
    same(fused, model, x)


@pytest.mark.parametrize("cls", [LeNetReLU, VGG11BN], ids=lambda c: c.__name__)
def test_training_steps(cls: Any) -> None:
    """An optimizer made before fuse goes on; the same weights after the same steps."""
    torch.manual_seed(0)
    model = settle(cls()).train()
    twin = copy.deepcopy(model)
    for m in model, twin:
        for layer in m.modules():
            if isinstance(layer, nn.Dropout):
                layer.p = 0.0
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9) for m in (model, twin)]
    cmf.fuse(twin)
    x = torch.randn((8, *cls.shape[1:]))
    target = torch.arange(8) % 10
    for _ in range(3):
        for m, optimizer in zip((model, twin), optimizers, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(m(x), target).backward()
            optimizer.step()
    for a, e in zip(twin.state_dict().values(), model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-3, atol=1e-4)
    same(twin.eval(), model.eval(), x)


def test_moving_and_casting() -> None:
    model, fused, x = make(VGG11BN)
    same(fused.double(), copy.deepcopy(model).double(), x.double())
    same(fused.float(), model, x)
    fused.to(memory_format=torch.channels_last)
    same(fused, model, x.contiguous(memory_format=torch.channels_last))
    with torch.no_grad():
        half = fused.bfloat16()(x.bfloat16())
        assert_within(half, copy.deepcopy(model).bfloat16()(x.bfloat16()), 3.2e-2)
    meta = cmf.fuse(VGG11BN()).eval().to("meta")
    assert meta(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 10)


def test_fused_on_the_meta_device_and_filled_later() -> None:
    model, _, x = make(VGG11BN)
    with torch.device("meta"):
        late = VGG11BN().eval()
    cmf.fuse(late)
    late.to_empty(device="cpu")
    late.load_state_dict(model.state_dict())
    same(late, model, x)


def test_modes_of_autograd_and_autocast() -> None:
    model, fused, x = make(VGG11BN)
    with torch.inference_mode():
        assert_within(fused(x), model(x), TOLERANCE)
    # weights folded in inference mode serve outside it
    z = x.clone().requires_grad_()
    fused.requires_grad_(False)(z).sum().backward()
    assert z.grad is not None
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        assert_within(fused(x).float(), model(x).float(), 3.2e-2)


def test_functional_call_vmap_and_grad() -> None:
    model, fused, x = make(LeNetReLU)
    weights = {name: p.detach() * 1.1 for name, p in model.named_parameters()}

    def loss(m: nn.Module, weights: dict[str, Tensor], image: Tensor) -> Tensor:
        return torch.func.functional_call(m, weights, (image.unsqueeze(0),)).square().sum()

    grads = []
    for m in (fused, model):
        grad = torch.func.grad(lambda w, i, m=m: loss(m, w, i))
        grads.append(torch.func.vmap(grad, in_dims=(None, 0))(weights, x))
    for name in weights:
        assert_within(grads[0][name], grads[1][name], 1e-4)


def test_functional_call_with_batch_norm() -> None:
    model, fused, x = make(VGG11BN)
    state = {n: t * 1.1 if t.is_floating_point() else t for n, t in model.state_dict().items()}
    with torch.no_grad():
        fused(x)  # folds the module's own weights
        actual = torch.func.functional_call(fused, state, (x,))
        expected = torch.func.functional_call(model, state, (x,))
    assert_within(actual, expected, TOLERANCE)
    same(fused, model, x)


def test_averaged_models() -> None:
    model, fused, x = make(VGG11BN)
    ema = torch.optim.swa_utils.AveragedModel(
        fused, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5), use_buffers=True
    ).eval()
    plain = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5), use_buffers=True
    ).eval()
    for step in range(3):
        with torch.no_grad():
            for m in (model, fused):
                for p in m.parameters():
                    p.mul_(1 + 0.1 * step)
        ema.update_parameters(fused)
        plain.update_parameters(model)
        same(ema, plain, x)
    report = cmf.fusion_report(ema)
    assert report[0].path == "module.features.0"
    assert fused_count(ema) == fused_count(fused)


def test_distributed_data_parallel(tmp_path: Path) -> None:
    if not torch.distributed.is_available():
        pytest.skip("PyTorch was built without torch.distributed")
    # In a process that ends without taking down its process group: PyTorch's destructor of gloo's
    # has been seen to wait for a thread of its own for ever.
    code = (
        f"from tests.test_fuse_life import train_in_parallel; train_in_parallel({str(tmp_path)!r})"
    )
    root = Path(__file__).resolve().parent.parent
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr


def train_in_parallel(folder: str) -> None:
    model, fused, x = make(LeNetReLU)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=0, world_size=1
    )
    parallel = nn.parallel.DistributedDataParallel(fused.train())
    parallel(x).square().sum().backward()
    model.train()(x).square().sum().backward()
    for a, e in zip(fused.parameters(), model.parameters(), strict=True):
        assert_within(a.grad, e.grad, 1e-4)
    os._exit(0)


def test_replicas_share_nothing_with_their_original() -> None:
    """nn.DataParallel copies a module's __dict__ and gives it other parameters."""
    model, fused, x = make(ResNet18)
    replicas = {}
    for name, module in fused.named_modules():
        replica = module._replicate_for_data_parallel()
        for key, p in module._parameters.items():
            replica._parameters[key] = None if p is None else p.detach() * 1.1
        for key, b in module._buffers.items():
            replica._buffers[key] = b
        replicas[name] = replica
    for name, replica in replicas.items():
        for child in replica._modules:
            if replica._modules[child] is not None:
                replica._modules[child] = replicas[f"{name}.{child}".lstrip(".")]
    for p in model.parameters():
        p.data.mul_(1.1)
    same(replicas[""], model, x)


def test_many_threads() -> None:
    model, fused, x = make(VGG11BN)
    with torch.no_grad():
        expected = model(x)
    results: list[Tensor] = []

    def run() -> None:
        with torch.no_grad():
            for _ in range(5):
                results.append(fused(x))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 20
    for result in results:
        assert_within(result, expected, TOLERANCE)


@pytest.mark.parametrize("cls", [LeNetReLU, Inception], ids=lambda c: c.__name__)
def test_compile(cls: Any) -> None:
    model, fused, x = make(cls)
    torch._dynamo.reset()
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    same(compiled, model, x)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()

    def total(output: Any) -> Tensor:
        return sum(t.square().sum() for t in ([output] if isinstance(output, Tensor) else output))

    total(compiled(a)).backward()
    total(model(b)).backward()
    assert_within(a.grad, b.grad, 1e-4)
    torch._dynamo.reset()


def test_compiled_models_follow_their_modes() -> None:
    model, fused, x = make(VGG11BN)
    torch._dynamo.reset()
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    for training in (False, True, False):
        for m in (model, fused):
            m.train(training)
            m.classifier.eval()  # its Dropout draws in another order
        same(compiled, model, x)
        for p, q in zip(model.parameters(), fused.parameters(), strict=True):
            p.data.mul_(0.9)
            q.data.mul_(0.9)
    torch._dynamo.reset()


def test_export_gives_pytorchs_own_operators() -> None:
    model, fused, x = make(ResNet18)
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(fused, (x,), dynamic_shapes={"x": {0: batch}})
    assert "crossmedia_fast" not in str(exported.graph)
    same(exported.module(), model, x)
    same(exported.module(), model, torch.cat([x, x]))
    assert set(exported.state_dict) == set(model.state_dict())


def test_torchscript_tracing_and_fx() -> None:
    model, fused, x = make(LeNetReLU)
    traced = torch.jit.trace(fused, x)
    same(traced, model, x * 2)
    graph = torch.fx.symbolic_trace(fused)
    same(graph, model, x)
    cmf.fuse(graph)
    assert "GraphModule" in cmf.fusion_report(graph)[0].reason
    same(graph, model, x)


def test_reports_of_parts_and_of_wholes() -> None:
    _, fused, _ = make(ResNet18)
    part = cmf.fusion_report(fused.layer1)
    assert [row.path for row in part] == ["0.conv1", "0.conv2", "1.conv1", "1.conv2"]
    assert all(row.fused for row in part)
    text = str(cmf.fusion_report(fused))
    assert "layer2.0.downsample.0" in text
    assert "Conv2d -> BatchNorm2d -> relu -> MaxPool2d" in text
    assert str(cmf.fusion_report(nn.Linear(1, 1))) == "no convolution found"
    assert cmf.fusion_report(nn.Conv2d(1, 1, 1))[0].reason == "no module calls it"


def test_only_a_part_is_fused() -> None:
    model, _, x = make(VGG11BN)
    fused = copy.deepcopy(model)
    fused.features = cmf.fuse(fused.features)
    same(fused, model, x)
    assert fused_count(fused) == 8
    cmf.unfuse(fused)
    assert type(fused.features) is nn.Sequential


def test_a_class_that_wants_no_subclasses() -> None:
    class Registered(nn.Module):
        def __init_subclass__(cls, **kwargs: Any) -> None:
            super().__init_subclass__(**kwargs)
            raise ValueError("no subclasses")

        def __init__(self) -> None:
            super().__init__()
            self.block = ConvBlock(3, 4, kernel_size=3)
            self.pool = nn.MaxPool2d(2)

        def forward(self, x: Tensor) -> Tensor:
            return self.pool(self.block(x))

    model = Registered().eval()
    x = torch.randn(1, 3, 8, 8)
    expected = model(x)
    cmf.fuse(model)
    assert_within(model(x), expected, TOLERANCE)
    assert type(model) is Registered
    assert "can't be subclassed: no subclasses" in cmf.fusion_report(model)[0].reason
