"""A model's trust in its calls: copies, threads, and what is kept alive."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch

from crossmedia_fast import native
from crossmedia_fast.fusion.trust import TRUST

from .fuse_cases import TOLERANCE, pair
from .test_fuse_trust import Network, _layer, _leaf, _weights, image, same, settled, trusted
from .tolerances import assert_within

pytestmark = pytest.mark.skipif(native.module is None, reason="binds calls of the native module")


def test_copies_learn_for_themselves() -> None:
    fused, plain = settled()
    for other in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert not trusted(other)
        for _ in range(4):
            same(other, plain)
        assert trusted(other)
        changed = copy.deepcopy(plain)
        for model in (other, changed):
            _weights(model)
        same(other, changed)
        same(fused, plain)


def test_a_shallow_copy_is_another_module() -> None:
    fused, plain = settled()
    others: list[Any] = [copy.copy(fused), copy.copy(plain)]
    for other in others:
        other._modules = dict(other._modules)
        _leaf(other)
    for _ in range(4):
        same(*others)
        same(fused, plain)


def in_threads(work: Callable[[int], None], places: Iterable[int]) -> None:
    workers = [threading.Thread(target=work, args=(place,)) for place in places]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def test_threads_trust_their_own() -> None:
    models = [settled(Network(blocks)) for blocks in (1, 2, 3)]
    wanted = [same(*models_of) for models_of in models]
    failures: list[int] = []

    def work(place: int) -> None:
        fused, _ = models[place]
        for _ in range(50):
            with torch.no_grad():
                if not torch.equal(fused(image()), wanted[place]):
                    failures.append(place)

    in_threads(work, (0, 1, 2, 1))
    assert not failures


def test_threads_share_a_model() -> None:
    fused, plain = pair(Network())
    inputs = [image(size) for size in (12, 16, 20)]
    with torch.no_grad():
        wanted = [plain(x) for x in inputs]
    failures: list[Any] = []

    def work(place: int) -> None:
        try:
            for turn in range(60):
                x, want = inputs[(place + turn) % 3], wanted[(place + turn) % 3]
                with torch.no_grad():
                    assert_within(fused(x), want, TOLERANCE)
        except Exception as error:
            failures.append(error)

    in_threads(work, range(4))
    assert not failures


def test_calls_of_old_weights_are_not_kept() -> None:
    fused, plain = settled()
    calls: list[Any] = []
    for _ in range(4):
        known = fused.__dict__[TRUST].known
        calls += [weakref.ref(call) for call in (known.calls if known else ())]
        del known
        for model in (fused, plain):
            _weights(model)
        for _ in range(3):
            same(fused, plain)
    gc.collect()
    # of those that remain all are in use
    assert len({id(call()) for call in calls if call() is not None}) <= 3
    assert len(fused.__dict__[TRUST].candidates) <= 3


def test_nothing_is_kept_alive() -> None:
    fused, plain = settled()
    gone = weakref.ref(fused.blocks[0].conv)  # type: ignore[index]
    for model in (fused, plain):
        _layer(model)
    same(fused, plain)
    gc.collect()
    assert gone() is None
    whole = weakref.ref(fused)
    del fused, model
    gc.collect()
    assert whole() is None
