"""Strict reader of IDX files, the format of MNIST, Fashion-MNIST and EMNIST.

An IDX file is: two zero bytes, a type byte (0x08 = unsigned byte), the number of dimensions, each
dimension as a big-endian 32-bit number, then the elements in row order, and nothing after them.
Whatever differs is refused, with the file's name: a file that is read half is worse than an error.
"""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from .errors import DemoError

UNSIGNED_BYTE = 0x08
# EMNIST's largest split is 0.55 GB. More than this is a wrong header or a gzip bomb.
MAX_BYTES = 2 << 30
_CHUNK = 1 << 24

# mnist: train-images-idx3-ubyte; emnist: emnist-letters-train-images-idx3-ubyte; some copies have a
# dot in place of the dash before "idx", and emnist calls its test split "test".
_NAME = re.compile(
    r"^(?:(?P<prefix>.+)-)?(?P<split>train|t10k|test)-(?P<kind>images|labels)"
    r"[-.]idx[13]-ubyte(?P<gz>\.gz)?$"
)


@dataclass(frozen=True)
class IdxSplit:
    """The two files of one split."""

    images: Path
    labels: Path
    transposed: bool  # EMNIST stores each image with rows and columns exchanged


def _read_exactly(stream: BinaryIO, count: int, path: Path, what: str) -> bytes:
    parts = []
    missing = count
    while missing:
        # In chunks, so that a lying header costs no more memory than the file really has.
        part = stream.read(min(missing, _CHUNK))
        if not part:
            raise DemoError(
                f"{path}: truncated: {what} takes {count} bytes, {count - missing} are there"
            )
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def _parse(stream: BinaryIO, path: Path, ndim: int) -> npt.NDArray[np.uint8]:
    magic = _read_exactly(stream, 4, path, "the magic number")
    if magic[0] or magic[1]:
        raise DemoError(f"{path}: not an IDX file: it starts with {magic.hex(' ')}, not 00 00")
    if magic[2] != UNSIGNED_BYTE:
        raise DemoError(f"{path}: element type 0x{magic[2]:02x}, not unsigned bytes (0x08)")
    if magic[3] != ndim:
        raise DemoError(f"{path}: {magic[3]} dimensions where {ndim} were expected")
    shape = struct.unpack(f">{ndim}I", _read_exactly(stream, 4 * ndim, path, "the list of sizes"))
    count = 1
    for size in shape:  # Python integers: the product can't overflow
        count *= size
    name = " x ".join(map(str, shape))
    if count == 0:
        raise DemoError(f"{path}: holds no elements (its sizes are {name})")
    if count > MAX_BYTES:
        raise DemoError(f"{path}: its sizes, {name}, are {count} bytes; the limit is {MAX_BYTES}")
    data = _read_exactly(stream, count, path, f"its content, {name},")
    if stream.read(1):
        raise DemoError(f"{path}: bytes follow the {count} that its sizes, {name}, ask for")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def read_idx(path: Path, ndim: int) -> npt.NDArray[np.uint8]:
    """Read one IDX file of unsigned bytes, gzipped where its name ends in .gz.

    Raises:
        DemoError: the file can't be read, isn't IDX, has another number of dimensions, sizes whose
            product is zero or beyond MAX_BYTES, too few bytes, or bytes after the last element.
    """
    try:
        with path.open("rb") as file:
            if path.suffix != ".gz":
                return _parse(file, path, ndim)
            with gzip.GzipFile(fileobj=file) as unpacked:
                return _parse(unpacked, path, ndim)  # type: ignore[arg-type]
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DemoError(f"{path}: broken gzip file: {error}") from None
    except OSError as error:
        raise DemoError(f"{path}: {error.strerror or error}") from None


def _find(folder: Path) -> dict[str, dict[tuple[str, str], Path]]:
    """Every file of the folder with an IDX name: prefix -> (split, kind) -> path."""
    found: dict[str, dict[tuple[str, str], Path]] = {}
    for path in sorted(folder.iterdir()):
        match = _NAME.match(path.name)
        if match and path.is_file():
            split = "train" if match["split"] == "train" else "test"
            files = found.setdefault(match["prefix"] or "", {})
            files.setdefault((split, match["kind"]), path)  # the plain file sorts before its .gz
    return found


def is_idx_folder(folder: Path) -> bool:
    return bool(_find(folder))


def find_splits(folder: Path) -> tuple[IdxSplit, IdxSplit | None]:
    """The training files of a folder, and its test files if both are there."""
    found = _find(folder)
    if len(found) > 1:
        names = ", ".join(sorted(prefix or "(none)" for prefix in found))
        raise DemoError(f"{folder}: several data sets, with prefixes {names}: keep one a folder")
    ((prefix, files),) = found.items()
    transposed = prefix.lower().startswith("emnist")

    def split(name: str) -> IdxSplit | None:
        images, labels = files.get((name, "images")), files.get((name, "labels"))
        if images and labels:
            return IdxSplit(images, labels, transposed)
        if images or labels:
            have, lack = ("images", "labels") if images else ("labels", "images")
            raise DemoError(f"{folder}: it has the {name} {have} and not the {name} {lack}")
        return None

    train = split("train")
    if train is None:
        raise DemoError(f"{folder}: no train-images-idx3-ubyte and train-labels-idx1-ubyte in it")
    return train, split("test")


def read_split(split: IdxSplit) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Images [N, H, W] and labels [N] of one split."""
    images = read_idx(split.images, 3)
    labels = read_idx(split.labels, 1)
    if len(images) != len(labels):
        raise DemoError(
            f"{split.labels}: {len(labels)} labels for the {len(images)} images of "
            f"{split.images.name}"
        )
    if split.transposed:
        images = images.transpose(0, 2, 1)
    return np.ascontiguousarray(images), labels.astype(np.int64)
