"""The demo's parts: checkpoints, batches, networks, judge, comparison, flags, exit status."""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import crossmedia_fast as cmf
from crossmedia_fast.demo import checkpoint, cli
from crossmedia_fast.demo.checkpoint import Checkpoint
from crossmedia_fast.demo.compare import _SavedBytes
from crossmedia_fast.demo.distributed import Batches, World
from crossmedia_fast.demo.errors import DemoError
from crossmedia_fast.demo.judge import judge, representative_rows
from crossmedia_fast.demo.models import Classifier, make_gan
from crossmedia_fast.demo.settings import DEFAULT_EPOCHS, Settings, derive_seed
from crossmedia_fast.demo.train_cnn import learning_rate
from crossmedia_fast.demo.train_gan import discriminator_step, generator_step, make_trainable_gan

CPU = torch.device("cpu")
ALONE = World(0, 1, CPU)


def make_checkpoint(path: Path, **config: Any) -> Checkpoint:
    torch.manual_seed(len(config))
    module = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    return Checkpoint(path, {"seed": 0, **config}, {"m": module}, {"m": optimizer})


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "net.pt"
    first = make_checkpoint(path)
    first.epoch, first.history = 3, [{"loss": 0.5}]
    first.save()
    state = torch.random.get_rng_state()
    torch.rand(5)
    second = make_checkpoint(path)
    nn.init.zeros_(second.modules["m"].weight)
    assert second.resume()
    assert (second.epoch, second.history) == (3, [{"loss": 0.5}])
    assert torch.equal(second.modules["m"].weight, first.modules["m"].weight)
    assert str(second.optimizers["m"].state_dict()) == str(first.optimizers["m"].state_dict())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert os.listdir(path.parent) == ["net.pt"]


def test_checkpoint_that_fails_to_write_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.pt"
    first = make_checkpoint(path)
    first.epoch = 1
    first.save()

    def half(state: object, file: Any) -> None:
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", half)
    first.epoch = 2
    with pytest.raises(DemoError, match="No space left"):
        first.save()
    monkeypatch.undo()
    again = make_checkpoint(path)
    assert again.resume()
    assert again.epoch == 1


def test_checkpoint_absent_broken_or_of_another_run(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    assert not make_checkpoint(path).resume()
    make_checkpoint(path).save()
    with pytest.raises(DemoError, match="seed = 0, this run has 1"):
        make_checkpoint(path, seed=1).resume()
    whole = path.read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"nonsense"):
        path.write_bytes(content)
        with pytest.raises(DemoError, match="not a checkpoint or a broken one"):
            make_checkpoint(path).resume()
    torch.save({"some": "other file"}, path)
    with pytest.raises(DemoError, match="not a checkpoint of this version"):
        make_checkpoint(path).resume()


def test_checkpoint_runs_no_code_from_the_file(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    torch.save(Trap(), tmp_path / "net.pt")
    with pytest.raises(DemoError, match="not a checkpoint"):
        make_checkpoint(tmp_path / "net.pt").resume()
    assert not (tmp_path / "sprung").exists()


def test_batches_share_the_images_among_processes() -> None:
    parts = [Batches(10, 4, seed=3, world=World(rank, 2, CPU)) for rank in (0, 1)]
    first = [torch.cat(part.epoch(0)).tolist() for part in parts]
    assert sorted(first[0] + first[1]) == list(range(10))
    assert [len(batch) for batch in parts[0].epoch(0)] == [2, 2, 1]
    assert len(parts[0]) == 3
    assert torch.cat(parts[0].epoch(1)).tolist() != first[0]
    assert torch.cat(parts[0].epoch(0)).tolist() == first[0]


def test_default_epochs_keep_the_number_of_steps() -> None:
    settings = Settings()
    for network, epochs in DEFAULT_EPOCHS.items():
        assert settings.epochs_of(network, 4000) == epochs
        assert settings.epochs_of(network, 400) == epochs
        assert settings.epochs_of(network, 60_000) == max(1, -(-epochs * 4000 // 60_000))
        assert Settings(epochs=7).epochs_of(network, 60_000) == 7


def test_seeds_differ_by_every_part() -> None:
    seeds = {derive_seed(*parts) for parts in [(0, "a", 1), (0, "a", 2), (0, "b", 1), (1, "a", 1)]}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_learning_rate_rises_then_falls() -> None:
    rates = [learning_rate(step, 100) for step in range(100)]
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert 0 < rates[-1] < 0.01 * max(rates)
    assert learning_rate(0, 1) > 0


@pytest.mark.parametrize("kind", ["mlp", "dcgan"])
def test_gan_networks_are_what_is_written(kind: str) -> None:
    generator, discriminator = make_gan(kind)
    linear = [
        (module.in_features, module.out_features)
        for network in (generator, discriminator)
        for module in network
        if isinstance(module, nn.Linear)
    ]
    if kind == "mlp":  # the article's widths
        assert linear == [(64, 128), (128, 128), (128, 784), (784, 128), (128, 128), (128, 1)]
    else:
        fused = [m for n in (generator, discriminator) for m in n if isinstance(m, nn.Conv2d)]
        assert len(fused) == 6
        assert all(isinstance(module, cmf.nn.ConvActPool2d) for module in fused)
    images = generator(torch.randn(3, 64))
    assert images.shape == (3, 1, 28, 28)
    assert images.abs().max() <= 1
    assert discriminator(images).shape == (3, 1)


@pytest.mark.parametrize("kind", ["mlp", "dcgan"])
def test_gan_steps_train_one_player_each_towards_its_goal(kind: str) -> None:
    torch.manual_seed(0)
    gan = make_trainable_gan(kind, ALONE)
    real, noise = torch.rand(16, 1, 28, 28), torch.randn(16, 64)

    def weights(module: nn.Module) -> torch.Tensor:
        return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])

    fake = gan.generator(noise)
    before_g, before_d = weights(gan.bare_generator), weights(gan.bare_discriminator)
    losses = [discriminator_step(gan, real, fake).item() for _ in range(5)]
    assert losses[-1] < losses[0]
    assert torch.equal(weights(gan.bare_generator), before_g)
    after_d = weights(gan.bare_discriminator)
    assert not torch.equal(after_d, before_d)
    losses = [generator_step(gan, gan.generator(noise)).item() for _ in range(5)]
    assert losses[-1] < losses[0]
    assert torch.equal(weights(gan.bare_discriminator), after_d)
    assert not torch.equal(weights(gan.bare_generator), before_g)
    assert all(parameter.requires_grad for parameter in gan.bare_discriminator.parameters())


class _Oracle(Classifier):
    """Reads the class and the logit's height off two pixels."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        labels = images[:, 0, 0, 0].long()
        return nn.functional.one_hot(labels, 4) * images[:, 0, 0, 1, None]


def test_judge_counts_what_the_classifier_says() -> None:
    images = torch.zeros(8, 1, 28, 28)
    images[:, 0, 0, 0] = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    images[:, 0, 0, 1] = torch.tensor([50.0] * 6 + [1e-3] * 2)
    verdict = judge(_Oracle(4, 0.0, 1.0), images, CPU)
    assert verdict.histogram == [4, 2, 2, 0]
    assert verdict.covered_classes == 3
    assert verdict.sure_share == 0.75
    assert verdict.mean_confidence == pytest.approx((6 + 2 * 0.25) / 8, abs=1e-3)
    # (1/2 log 2 + 2 * 1/4 log 4) / log 4
    assert verdict.entropy == pytest.approx(0.75, abs=1e-6)
    rows = representative_rows(images, verdict, 3)
    assert [None if row is None else len(row) for row in rows] == [3, 2, 2, None]
    assert rows[1] is not None
    assert (rows[1][:, 0, 0, 0] == 1).all()


def test_saved_bytes_counts_each_storage_once_and_no_parameter() -> None:
    layer = nn.Linear(10, 5, bias=False)
    x = torch.randn(7, 10, requires_grad=True)
    counter = _SavedBytes([layer])
    with torch.autograd.graph.saved_tensors_hooks(counter.pack, lambda tensor: tensor):
        y = layer(x).tanh()  # saves x, the weight, and its own output
        (y * y).sum()  # saves y again, twice
    assert counter.total == 4 * (7 * 10 + 7 * 5)


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="demo")
    cli.add_arguments(parser)
    return parser.parse_args(arguments)


def test_flags_and_their_defaults() -> None:
    assert cli._settings(parse()) == Settings()
    given = "--data d --gan mlp --epochs 3 --batch-size 5 --backend reference --seed 9 --out o"
    assert cli._settings(parse(*given.split(), "--resume", "--threads", "2", "--limit", "99")) == (
        Settings("d", "mlp", 3, 5, "reference", 9, "o", True, 2, 99)
    )


@pytest.mark.parametrize(
    "arguments",
    ["--epochs 0", "--epochs x", "--batch-size -1", "--gan cycle", "--backend gpu", "--seed -1",
     "--threads 0", "--limit 1", "--nonsense"],
)  # fmt: skip
def test_bad_flags_exit_with_2(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(*arguments.split())
    assert caught.value.code == 2
    assert arguments.split()[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "no/such/folder"], "no/such/folder: no such folder"),
        (["--data", os.path.abspath(__file__)], "not a folder"),
        (["--backend", "cuda"], "--backend cuda can't run here"),
    ],
    ids=["missing", "file", "backend"],
)
def test_errors_are_one_line_and_exit_with_2(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "cuda" in arguments and cmf.backends()[1].available:
        pytest.skip("CUDA kernels can run here")
    assert cli.run(parse(*arguments, "--out", str(tmp_path))) == 2
    error = capsys.readouterr().err
    assert error.startswith("crossmedia_fast demo: error: ")
    assert message in error
    assert error.count("\n") == 1


def test_out_that_is_a_file_exits_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mlxtend")
    (tmp_path / "out").write_bytes(b"")
    assert cli.run(parse("--limit", "40", "--out", str(tmp_path / "out"))) == 2
    assert "can't write there" in capsys.readouterr().err


def test_interrupt_exits_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "run_pipeline", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    # a shell that starts the tests in the background has them ignore it
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert cli.run(parse("--out", "here")) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert "--resume --out here" in capsys.readouterr().err
