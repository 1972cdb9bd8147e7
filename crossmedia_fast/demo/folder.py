"""Reader of a folder of image files, one folder a class."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .errors import DemoError, require

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm"}
_RESIZED = 28


@dataclass(frozen=True)
class FolderImages:
    images: npt.NDArray[np.float32]  # [N, 28, 28], 0 to 255
    labels: npt.NDArray[np.int64]  # [N]
    class_names: list[str]
    unreadable: int  # files that no image could be read from


def _read_image(path: Path) -> npt.NDArray[np.float32] | None:
    """One file as 28x28 grey, 0 to 255; None where it is broken."""
    image_module = require("PIL.Image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", image_module.DecompressionBombWarning)
            warnings.filterwarnings("ignore", category=UserWarning)
            with image_module.open(path) as file:
                file.load()
                grey = file.convert("F") if file.mode[0] in "IF" else file.convert("L").convert("F")
                size = (_RESIZED, _RESIZED)
                small = (
                    grey if file.size == size else grey.resize(size, image_module.Resampling.BOX)
                )
                pixels = np.array(small, dtype=np.float32)
                # 16-bit files keep their scale in mode F; the rest is 0 to 255 already.
                return pixels / 257.0 if file.mode.startswith("I") else pixels
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        MemoryError,
        image_module.DecompressionBombError,
        image_module.DecompressionBombWarning,
    ):
        return None  # Pillow's readers raise any of these for a broken file; it is counted


def read_image_folder(folder: Path) -> FolderImages:
    """Every image below each class folder, in the order of the names.

    Raises:
        DemoError: no class folder with images, or only one of them.
    """
    class_names: list[str] = []
    images: list[npt.NDArray[np.float32]] = []
    labels: list[int] = []
    unreadable = 0
    for class_folder in sorted(path for path in folder.iterdir() if path.is_dir()):
        files = sorted(path for path in class_folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        if not files:
            continue
        for path in files:
            image = _read_image(path)
            if image is None:
                unreadable += 1
            else:
                images.append(image)
                labels.append(len(class_names))
        class_names.append(class_folder.name)
    if not class_names:
        raise DemoError(
            f"{folder}: no images: expected IDX files (train-images-idx3-ubyte, ...) or one folder "
            "of image files a class"
        )
    if not images:
        raise DemoError(f"{folder}: none of its {unreadable} image files can be read")
    if len(set(labels)) < 2:
        raise DemoError(
            f"{folder}: images of one class only; a classifier needs at least two folders"
        )
    return FolderImages(np.stack(images), np.array(labels, np.int64), class_names, unreadable)
