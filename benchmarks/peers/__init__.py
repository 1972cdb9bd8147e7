"""Who is measured. A peer is a name, a module of this folder, what must be installed, and suites.

A peer's module has `version()` and `build(case, arrays, threads, variant) -> Prepared`. It runs in
a process of its own (benchmarks/worker.py): thread pools of two runtimes in one process disturb
each other.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable

from ..data import Arrays
from ..shapes import SUITES

_CONV = ("inference", "training", "overhead", "models")
_RUNTIMES = ("inference", "models")


class Unsupported(Exception):
    """The peer has no such operation; the message says which."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A case, ready to be timed."""

    call: Callable[[], object]  # what is timed
    outputs: Callable[[], Arrays]  # what it computed, contiguous [N, K, P, Q]; not timed
    note: str = ""  # which algorithm, where the peer says so
    kept_bytes: Callable[[], int] | None = None  # kept for backward beyond inputs and parameters
    peak_bytes: Callable[[], int | None] | None = None  # by which memory grows during a call


def is_ours(name: str) -> bool:
    """Whether a peer's name is that of a variant of crossmedia_fast."""
    return name.startswith("fused")


@dataclasses.dataclass(frozen=True)
class Peer:
    name: str
    label: str
    module: str
    requires: tuple[str, ...]
    suites: tuple[str, ...]

    @property
    def ours(self) -> bool:
        return is_ours(self.name)

    def missing(self) -> str:
        """Why the peer can't run here; "" where it can."""
        absent = [name for name in self.requires if importlib.util.find_spec(name) is None]
        return f"not installed: {', '.join(absent)}" if absent else ""


def _torch(name: str, label: str, suites: tuple[str, ...]) -> Peer:
    return Peer(name, label, "torch_peer", ("torch",), suites)


PEERS = {
    peer.name: peer
    for peer in (
        _torch("fused", "crossmedia_fast", SUITES),
        _torch("fused_channels_last", "crossmedia_fast, channels_last", _CONV),
        _torch("eager", "eager", SUITES),
        _torch("eager_channels_last", "eager, channels_last", _CONV),
        _torch("eager_softplus", "eager, softplus form", ("losses", "overhead")),
        _torch("compile", "torch.compile", SUITES),
        _torch("compile_channels_last", "torch.compile, channels_last", _CONV),
        _torch("compile_softplus", "torch.compile, softplus form", ("losses", "overhead")),
        _torch(
            "compile_freezing", "torch.compile, frozen weights", ("inference", "overhead", "models")
        ),
        Peer(
            "onnxruntime", "ONNX Runtime", "onnxruntime_peer", ("onnxruntime", "onnx"), _RUNTIMES
        ),
        Peer("openvino", "OpenVINO", "openvino_peer", ("openvino", "onnx"), _RUNTIMES),
        Peer("ncnn", "ncnn", "ncnn_peer", ("ncnn",), ("inference",)),
        Peer("mnn", "MNN", "mnn_peer", ("MNN", "onnx"), _RUNTIMES),
    )
}  # fmt: skip


def select(suite: str, names: str) -> list[Peer]:
    """The peers of a suite: "all", "torch" (no other runtime), or names; ours always among them."""
    able = [peer for peer in PEERS.values() if suite in peer.suites]
    if names == "all":
        return able
    if names == "torch":
        return [peer for peer in able if peer.module == "torch_peer"]
    wanted = names.split(",") if names else []
    for name in wanted:
        if name not in PEERS:
            raise ValueError(f"peers: expected names among {', '.join(PEERS)}, got {name!r}")
        if suite not in PEERS[name].suites:
            raise ValueError(f"peers: {name} is no peer of suite {suite}")
    return [peer for peer in able if peer.ours or peer.name in wanted]
