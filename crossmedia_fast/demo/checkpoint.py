"""Checkpoints: written whole or not at all, loaded without running code from the file.

One file a network, `checkpoints/<network>.pt`, rewritten after each epoch:

    format       1
    config       what the result depends on; a resumed run must have the same
    epoch        epochs finished
    history      one row of numbers an epoch
    modules      name -> state_dict
    optimizers   name -> state_dict
    rng          the CPU generator's state

Randomness is seeded at the start of each epoch from (seed, network, epoch, rank), so a run that
continues after epoch n draws what the uninterrupted run drew, in any number of processes.
"""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .errors import DemoError

FORMAT = 1
_KEYS = {"format", "config", "epoch", "history", "modules", "optimizers", "rng"}


def write_atomically(path: Path, state: Any) -> None:
    """torch.save to a temporary file beside `path`, flush to the disk, then rename over it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    # The rename itself is on the disk only when the folder is; not every system can sync a folder.
    with contextlib.suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class Checkpoint:
    """The modules, optimizers and history of one network's training, and the file they go to."""

    def __init__(
        self,
        path: Path,
        config: Mapping[str, str | int | None],
        modules: Mapping[str, nn.Module],
        optimizers: Mapping[str, torch.optim.Optimizer],
    ) -> None:
        self.path = path
        self.config = dict(config)
        self.modules = dict(modules)
        self.optimizers = dict(optimizers)
        self.epoch = 0
        self.history: list[dict[str, float]] = []

    def save(self) -> None:
        state = {
            "format": FORMAT,
            "config": self.config,
            "epoch": self.epoch,
            "history": self.history,
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "optimizers": {name: opt.state_dict() for name, opt in self.optimizers.items()},
            "rng": torch.get_rng_state(),
        }
        try:
            write_atomically(self.path, state)
        except OSError as error:
            raise DemoError(f"{self.path}: can't write: {error.strerror or error}") from None

    def resume(self) -> bool:
        """Continue from the file where there is one. False where there is none.

        Raises:
            DemoError: the file is broken, or was written by a run with other settings.
        """
        if not self.path.exists():
            return False
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError):
            raise DemoError(
                f"{self.path}: not a checkpoint or a broken one; delete it, or run without --resume"
            ) from None
        if not isinstance(state, dict) or not state.keys() >= _KEYS or state["format"] != FORMAT:
            raise DemoError(f"{self.path}: not a checkpoint of this version of the demo")
        for name, value in self.config.items():
            if state["config"].get(name) != value:
                raise DemoError(
                    f"{self.path}: written with {name} = {state['config'].get(name)}, this run has "
                    f"{value}; give the same settings, or run without --resume"
                )
        try:
            for name, module in self.modules.items():
                module.load_state_dict(state["modules"][name])
            for name, optimizer in self.optimizers.items():
                optimizer.load_state_dict(state["optimizers"][name])
        except (RuntimeError, KeyError, ValueError):
            raise DemoError(f"{self.path}: holds another network than this version's") from None
        torch.set_rng_state(state["rng"])
        self.epoch, self.history = state["epoch"], state["history"]
        return True
