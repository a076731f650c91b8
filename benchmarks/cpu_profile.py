"""Where the C++ operators spend their time, and what their inner loops are made of: needs Linux's perf, and objdump.

    python benchmarks/cpu_profile.py --out results/profile-cpu.json

Each workload runs in a process of its own under perf's clock, which needs no hardware counters; shares are of the
samples within the library. The loops are those of the library as it was compiled: instructions per multiplication of
vectors.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

import operators
import rsn2_kernels as rk
from rsn2 import machine
from rsn2.bench.baselines import ours
from rsn2.bench.products import Problem

LIBRARY = Path(rk.__file__).parent / "lib" / "librsn2_cpu.so"
DENSITY = 0.1
WORKLOADS = ("linear 512 x 1000 x 1000", "linear 1 x 4096 x 4096", "conv 3x3, 64 -> 64, 28 x 28, batch 64")
# What a function of the library is for, by the name in its symbol.
PARTS = {
    "multiply_rows": "products",
    "multiply_quads": "products",
    "multiply_any_order": "products",
    "multiply_bits": "products",
    "order_rows": "products",
    "scatter": "products",
    "sample": "value gradients",
    "transpose": "packing and storing",
    "copy_runs": "packing and storing",
    "Source": "packing and storing",
    "Sink": "packing and storing",
}
# Loop -> what stands in the symbol of the function that it is the innermost loop of.
LOOPS: dict[str, tuple[str, ...]] = {
    "products, a panel": ("FloatSums<float, {vectors}>, 2, float, unsigned short, ", "InOrder"),
    "products, a panel, values where they stand": (
        "FloatSums<float, {vectors}>, 2, float, unsigned short, ",
        "InPlace",
    ),
    "products, a panel, bf16 in pairs": ("PairSums<unsigned short, 2>, 2, float, unsigned short, ",),
    "products, one position": ("multiply_any_order<float, unsigned short>",),
    "products, one position, in order": ("multiply_quads<float, unsigned short, 2>",),
    "products, one position, by bits": ("multiply_bits",),
    "value gradients, a panel": ("sample_wide<float, unsigned short, float>",),
    "value gradients, a panel, bf16 in pairs": ("sample_wide<float, unsigned short, unsigned short>",),
}
SHUFFLES = ("vunpck", "vshuf", "vinsert", "vperm", "vexpand", "vpunpck", "vpmovzx", "vmovlhps", "vmovhlps")


class Instruction(NamedTuple):
    address: int
    name: str
    operands: str

    @property
    def multiplies(self) -> bool:
        return self.name.startswith(("vfmadd", "vdpbf16"))

    @property
    def loads(self) -> bool:
        """Reads memory: in AT&T order the last operand is what is written."""
        if "(" not in self.operands or self.name.startswith(("lea", "nop", "prefetch", "cs")):
            return False
        stores = self.name.startswith(("mov", "vmov")) and self.operands.endswith(")")
        return not stores


def run_one(workload: str, training: bool, seconds: float) -> None:
    """Call a packed operator for a while: what perf looks at."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    machine.keep_memory()
    call = ours(Problem(replace(operators.PROBLEMS[workload], density=DENSITY, training=training))).call(training)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        call()


def shares(workload: str, training: bool, seconds: float) -> dict[str, float]:
    """Part -> its share of the samples within the library."""
    with tempfile.TemporaryDirectory() as folder:
        data = f"{folder}/perf.data"
        child = [sys.executable, __file__, "--run", workload, "--seconds", str(seconds), *["--training"] * training]
        record = ["perf", "record", "-q", "-F", "1999", "-e", "cpu-clock", "-o", data, *child]
        subprocess.run(record, check=True, capture_output=True)
        report = ["perf", "report", "-i", data, "--stdio", "--dsos", LIBRARY.name, "--percentage", "relative"]
        lines = subprocess.run(
            [*report, "-F", "overhead,symbol"], check=True, capture_output=True, text=True
        ).stdout.splitlines()
    found = dict.fromkeys((*PARTS.values(), "other"), 0.0)
    for line in lines:
        if match := re.match(r"\s*([\d.]+)%\s+\[\.\]\s+(.*)", line):
            part = next((part for name, part in PARTS.items() if name in match[2]), "other")
            found[part] += float(match[1]) / 100
    return found


def functions() -> dict[str, list[Instruction]]:
    """The library's functions, disassembled."""
    text = subprocess.run(
        ["objdump", "-d", "-C", "--no-show-raw-insn", LIBRARY], check=True, capture_output=True, text=True
    ).stdout
    found: dict[str, list[Instruction]] = {}
    for line in text.splitlines():
        if head := re.match(r"[0-9a-f]+ <(.*)>:$", line):
            body = found.setdefault(head[1], [])
        elif code := re.match(r"\s*([0-9a-f]+):\s+(\S+)\s*([^#]*)", line):
            body.append(Instruction(int(code[1], 16), code[2], code[3].strip()))
    return found


def busiest_loop(body: list[Instruction]) -> list[Instruction]:
    """The innermost loop with the most multiplications."""
    places = {each.address: place for place, each in enumerate(body)}
    jumps = []
    for place, each in enumerate(body):
        target = re.match(r"([0-9a-f]+) <", each.operands) if each.name.startswith("j") else None
        start = places.get(int(target[1], 16), place) if target else place
        if start < place:
            jumps.append((start, place))
    inner = [(a, b) for a, b in jumps if not any(a <= c and d < b for c, d in jumps if (c, d) != (a, b))]
    return max((body[a : b + 1] for a, b in inner), key=lambda loop: sum(each.multiplies for each in loop))


def loops() -> dict[str, dict[str, float]]:
    """Loop -> instructions, loads and shuffles per multiplication of vectors; of those that this machine runs."""
    isa = {"AVX512": "avx512", "AVX2": "avx2"}[str(machine.facts()["cpu_capability"])]
    vectors = 4 if isa == "avx512" else 8
    bodies = functions()
    found = {}
    for name, patterns in LOOPS.items():
        wanted = [pattern.format(vectors=vectors) for pattern in patterns]
        namespaces = (f"::{isa}::", f"::{isa}_bf16::")
        matching = [
            body
            for symbol, body in bodies.items()
            if all(each in symbol for each in wanted) and any(each in symbol for each in namespaces)
        ]
        if not matching:
            continue
        loop = busiest_loop(matching[0])
        multiplications = sum(each.multiplies for each in loop)
        counts = {
            "instructions": len(loop),
            "loads": sum(each.loads for each in loop),
            "shuffles": sum(each.name.startswith(SHUFFLES) for each in loop),
        }
        found[name] = {kind: count / multiplications for kind, count in counts.items()}
    return found


def main() -> None:
    """Profile all workloads, count the loops, print both and write a file if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--seconds", type=float, default=8, help="time per workload")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--training", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        run_one(arguments.run, arguments.training, arguments.seconds)
        return
    content = {
        "machine": machine.facts(),
        "density": DENSITY,
        "loops": loops(),
        "shares": {
            workload: {
                kind: shares(workload, kind == "training", arguments.seconds) for kind in ("forward", "training")
            }
            for workload in WORKLOADS
        },
    }
    print(json.dumps(content, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
