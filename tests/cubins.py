"""What nvcc made of each kernel, read from the built module: no tool of the toolkit's is needed.

The module's section .nv_fatbin holds, a source file each, an ELF file for every GPU that the build
names, and intermediate code (PTX) for those to come.
"""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_FATBIN = 0xBA55ED50
PTX, ELF = 1, 2  # kinds of images
_REGISTERS, _FRAME = 0x2F, 0x11  # attributes of a kernel in .nv.info


class Resources(NamedTuple):
    """Of one kernel on one GPU."""

    architecture: int  # 90: sm_90
    kernel: str
    registers: int
    frame: int  # bytes of a thread's stack: what was spilled, arrays with a run-time index
    shared: int  # bytes that are declared


class Section(NamedTuple):
    name: str
    content: memoryview
    size: int
    link: int


def sections(elf: memoryview) -> list[Section]:
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names = struct.unpack_from("<HHH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQII", elf, table + i * size) for i in range(count)]
    strings = headers[names][4]
    result = []
    for name, kind, _, _, offset, length, link, _ in headers:
        start = strings + name
        end = bytes(elf[start : start + 4096]).index(0)
        content = elf[offset : offset if kind == 8 else offset + length]  # 8: occupies no file
        result.append(Section(bytes(elf[start : start + end]).decode(), content, length, link))
    return result


def images(module: Path) -> Iterator[tuple[int, int, memoryview]]:
    """(kind, architecture, content) of all device code."""
    whole = memoryview(module.read_bytes())
    found = [s for s in sections(whole) if s.name == ".nv_fatbin"]
    data = found[0].content if found else memoryview(b"")
    at = 0
    while at + 16 <= len(data):
        magic, _, header, size = struct.unpack_from("<IHHQ", data, at)
        if magic != _FATBIN:
            at += 8
            continue
        entry, end = at + header, at + header + size
        while entry < end:
            kind, _, length, payload = struct.unpack_from("<HHIQ", data, entry)
            (architecture,) = struct.unpack_from("<I", data, entry + 28)
            yield kind, architecture, data[entry + length : entry + length + payload]
            entry += length + payload
        at = end


def of_cubin(architecture: int, elf: memoryview) -> Iterator[Resources]:
    by_name = {s.name: s for s in sections(elf)}
    symbols = by_name[".symtab"]
    strings = sections(elf)[symbols.link].content

    def symbol(index: int) -> str:
        (name,) = struct.unpack_from("<I", symbols.content, 24 * index)
        text = bytes(strings[name : name + 4096])
        return text[: text.index(0)].decode()

    attributes: dict[int, dict[str, int]] = {_REGISTERS: {}, _FRAME: {}}
    info = by_name[".nv.info"].content if ".nv.info" in by_name else memoryview(b"")
    at = 0
    while at < len(info):
        form, attribute, value = struct.unpack_from("<BBH", info, at)
        at += 4
        if form == 4:  # `value` bytes follow
            if attribute in attributes:
                index, number = struct.unpack_from("<II", info, at)
                attributes[attribute][symbol(index)] = number
            at += value
    for name in by_name:
        if name.startswith(".text."):
            kernel = name.removeprefix(".text.")
            shared = by_name.get(f".nv.shared.{kernel}")
            yield Resources(
                architecture,
                kernel,
                attributes[_REGISTERS][kernel],
                attributes[_FRAME][kernel],
                shared.size if shared else 0,
            )


def resources(module: Path) -> list[Resources]:
    """Of every kernel on every GPU."""
    result: list[Resources] = []
    for kind, architecture, content in images(module):
        if kind == ELF:
            if bytes(content[:4]) != b"\x7fELF":
                raise NotImplementedError("the device code is compressed")
            result += of_cubin(architecture, content)
    return result


def intermediate(module: Path) -> set[int]:
    """The architectures of the intermediate code: what the driver compiles for later GPUs."""
    return {architecture for kind, architecture, _ in images(module) if kind == PTX}


def readable(names: list[str]) -> list[str]:
    """The kernels' names as C++ writes them, where the binutils are."""
    try:
        done = subprocess.run(
            ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return names
    return done.stdout.splitlines()
