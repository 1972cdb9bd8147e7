"""What the processor executes in the innermost loops of each kernel, read from the machine code.

    make native && python -m benchmarks.inner_loops [--isa avx512] [--out FILE.md]

Disassembles the object files of build/native (GNU objdump) and finds the innermost loops: a
backward jump with no other inside its range. Of each file the loops with the most multiply-adds, or
where there are none with the most vector instructions, are counted. A load or store relative to the
stack pointer inside such a loop is a spill (or a scratch array on the stack: the function's name
tells).
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import pathlib
import re
import shutil
import subprocess

_LINE = re.compile(r"^\s*([0-9a-f]+):\s+(\S+)\s*(.*)$")
_FUNCTION = re.compile(r"^[0-9a-f]+ <(.+)>:$")
_REGISTER = re.compile(r"%[xyz]mm")


@dataclasses.dataclass
class Instruction:
    address: int
    name: str
    operands: str


@dataclasses.dataclass
class Loop:
    function: str
    body: list[Instruction]

    def counts(self) -> dict[str, int]:
        found: dict[str, int] = collections.Counter()
        for instruction in self.body:
            for kind in kinds(instruction):
                found[kind] += 1
        return found


def kinds(instruction: Instruction) -> list[str]:
    """What a row of the table counts an instruction as; one that loads and multiplies is both."""
    name, operands = instruction.name, instruction.operands
    if not _REGISTER.search(operands):
        return []
    found = ["vector"]
    if re.match(r"v?f(n?)m(add|sub)|vdp", name.removeprefix("v")) or name.startswith("vfm"):
        found.append("multiply-add")
    if "(" in operands:
        stores = operands.rstrip().endswith(")") and not name.startswith("vcmp")
        if "%rsp" in operands:
            found.append("stack")
        elif "{1to" in operands or "broadcast" in name:
            found.append("broadcast")
        else:
            found.append("store" if stores else "load")
    return found


def functions(path: pathlib.Path) -> dict[str, list[Instruction]]:
    """The instructions of every function of an object file."""
    command = ["objdump", "-d", "-C", "--no-show-raw-insn", str(path)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, list[Instruction]] = {}
    body: list[Instruction] = []
    for line in text.splitlines():
        if match := _FUNCTION.match(line):
            body = found.setdefault(match[1], [])
        elif match := _LINE.match(line):
            body.append(Instruction(int(match[1], 16), match[2], match[3]))
    return found


def innermost_loops(function: str, body: list[Instruction]) -> list[Loop]:
    """Ranges that a backward jump repeats and that hold no other such range."""
    position = {instruction.address: i for i, instruction in enumerate(body)}
    ranges = []
    for i, instruction in enumerate(body):
        target = re.match(r"([0-9a-f]+)\b", instruction.operands)
        if instruction.name.startswith("j") and target:
            start = position.get(int(target[1], 16))
            if start is not None and start <= i:
                ranges.append((start, i))
    return [
        Loop(function, body[a : b + 1])
        for a, b in ranges
        if not any((c, d) != (a, b) and a <= c and d <= b for c, d in ranges)
    ]


COLUMNS = ("multiply-add", "load", "broadcast", "store", "stack", "vector")


def short(function: str) -> str:
    """The function's name and template arguments without namespaces, return type and arguments."""
    name = re.sub(r"cmf::\w+::|\(anonymous namespace\)::| \[clone [^]]*\]", "", function)
    depth, start = 0, 0
    for i, character in enumerate(name):
        depth += {"<": 1, ">": -1}.get(character, 0)
        if depth == 0 and character == " ":
            start = i + 1  # what came before was the type of the result
        if depth == 0 and character == "(":
            return name[start:i]
    return name[start:]


def rows(folder: pathlib.Path, most: int) -> list[list[str]]:
    found = []
    for path in sorted(folder.glob("*.cpp.o")):
        loops = [
            loop for name, body in functions(path).items() for loop in innermost_loops(name, body)
        ]
        weigh = max((loop.counts().get("multiply-add", 0) for loop in loops), default=0)
        key = "multiply-add" if weigh else "vector"
        loops.sort(key=lambda loop: loop.counts().get(key, 0), reverse=True)
        for loop in loops[:most]:
            counts = loop.counts()
            if not counts.get("vector"):
                continue
            cells = [str(counts.get(column, 0)) for column in COLUMNS]
            names = [path.name.removesuffix(".cpp.o"), f"`{short(loop.function)}`"]
            found.append([*names, *cells, str(len(loop.body))])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inner_loops", description=__doc__)
    parser.add_argument("--isa", default="avx512", choices=["baseline", "avx2", "avx512"])
    parser.add_argument("--build", type=pathlib.Path, default=pathlib.Path("build/native"))
    parser.add_argument("--most", type=int, default=2, help="loops a file")
    parser.add_argument("--out", type=pathlib.Path, help="a Markdown file")
    arguments = parser.parse_args()
    folder = arguments.build / "CMakeFiles" / f"cmf_{arguments.isa}.dir" / "csrc" / "cpu"
    if shutil.which("objdump") is None or not folder.is_dir():
        parser.error(f"needs objdump and a build in {folder} (`make native`)")
    header = ["file", "function", *COLUMNS, "all"]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(row) + " |" for row in rows(folder, arguments.most)]
    text = "\n".join(lines) + "\n"
    print(text, end="")
    if arguments.out is not None:
        arguments.out.write_text(
            f"# Innermost loops, {arguments.isa}\n\nInstructions an iteration; `python -m "
            f"benchmarks.inner_loops --isa {arguments.isa}`.\n\n{text}"
        )


if __name__ == "__main__":
    main()
