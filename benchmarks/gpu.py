"""Sparse products against cuBLAS and cuDNN on one GPU, all of it in one run: part of `make gpu-check`.

    python benchmarks/gpu.py --seconds 300 --out results/gpu.json

Candidates run in turn, timed by CUDA events in a stream that is never empty (or by the host's clock where it says
eager), on inputs that rotate through more than twice the second-level cache; figures are medians. A case that fails,
hangs or does not fit the time leaves its error and none of the others. `--dry-run` executes every line with tiny sizes
on a CPU, kernels interpreted: for `TRITON_INTERPRET=1`.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from gpu_bench import TINY, Bench, Record, Sizes, release
from gpu_operators import SOME, convolution, grouped, on_masks, real_masks, unstructured
from gpu_pieces import calls_on_the_host, ceilings, pieces
from gpu_small_batch import batches, serving, small_batch
from gpu_tiles import heights, tiles_of_convolutions, tiles_of_products, tiles_of_samples

PATIENCE = 90
"""Seconds without a new row, after which a process is ended and the next case begins in a new one."""

CASES: dict[str, Callable[[Bench], Record]] = {
    "ceilings": ceilings,
    "real masks, density 0.1": real_masks,
    "64 x 64 blocks, density 0.1": lambda bench: on_masks(bench, 0.1, 5, (64, 64), SOME[:3]),
    "64 x 64 blocks, density 0.2": lambda bench: on_masks(bench, 0.2, 3, (64, 64), SOME[:3]),
    "16 x 16 blocks, density 0.1": lambda bench: on_masks(bench, 0.1, 3, (16, 16), SOME[:3]),
    "16 x 16 blocks, density 0.2": lambda bench: on_masks(bench, 0.2, 2, (16, 16), SOME[:3]),
    "convolution": convolution,
    "grouped": grouped,
    "small batch": small_batch,
    "serving thirty tasks": serving,
    "unstructured": unstructured,
    "pieces": pieces,
    "small batches, where which backend wins": batches,
    "heights": heights,
    "calls on the host": calls_on_the_host,
    "real masks, density 0.05": lambda bench: on_masks(bench, 0.05, None, None, SOME),
    "real masks, density 0.2": lambda bench: on_masks(bench, 0.2, None, None, SOME),
    "tiles of the product": tiles_of_products,
    "tiles of the convolution": tiles_of_convolutions,
    "real masks, float32": lambda bench: on_masks(bench, 0.1, None, None, SOME[:1], torch.float32),
    "tiles of the sampled product": tiles_of_samples,
}
"""In the order in which they are measured: what the acceptance bars ask for first, what takes longest last."""


# ---- the command: a process that measures, and one that watches it


def measure(names: Sequence[str], dry: bool, data_dir: Path | None, lines: Path) -> int:
    """Run cases one after the other; every start, row and result is a line of a file."""

    def say(line: Record) -> None:
        with lines.open("a") as file:
            file.write(json.dumps(line, default=str) + "\n")

    bench = Bench(dry, data_dir, lambda row: say({"row": row}))
    for name in names:
        say({"started": name})
        start = time.perf_counter()
        bench.notes.clear()
        bench.wrong.clear()
        try:
            torch.manual_seed(0)
            found = CASES[name](bench)
            bench.synchronize()
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"[:2000], "traceback": traceback.format_exc()[-4000:]}
        if bench.wrong:
            found["error"] = "; ".join(["wrong results", *bench.wrong, found.get("error", "")])
            for each in found.get("bars", ()):
                each["met"] = False
        notes = {"notes": list(bench.notes)} if bench.notes else {}
        say({"case": name, "seconds_taken": time.perf_counter() - start, **notes, **found})
        try:
            bench.synchronize()
            release()
        except Exception:
            # The device is of no more use to this process.
            return 3
    return 0


def supervise(arguments: argparse.Namespace, lines: Path) -> list[Record]:
    """Run the cases in a process of their own, and again in a new one what a dead or stuck process left over."""
    deadline = time.monotonic() + arguments.seconds
    left = [name for name in CASES if not arguments.only or any(part in name for part in arguments.only)]
    found: list[Record] = []
    while left and time.monotonic() < deadline:
        lines.write_text("")
        command = [sys.executable, __file__, "--measure", str(lines), *(f"--case={name}" for name in left)]
        command += ["--dry-run"] if arguments.dry_run else []
        command += ["--data-dir", str(arguments.data_dir)] if arguments.data_dir else []
        log = lines.with_suffix(".log")
        with log.open("w") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
            ended = watched(process, lines, deadline)
        told = [json.loads(line) for line in lines.read_text().splitlines()]
        finished = [line for line in told if "case" in line]
        found += finished
        done = {line["case"] for line in finished}
        begun = [line["started"] for line in told if "started" in line and line["started"] not in done]
        # A process that died before its first case would do so again and again: it costs that case too.
        begun = begun or ([] if finished else left[:1])
        for name in begun:
            after = told[max((n for n, line in enumerate(told) if line.get("started") == name), default=0) :]
            rows = [line["row"] for line in after if "row" in line]
            output = log.read_text(errors="replace")[-3000:]
            found.append({"case": name, "error": ended, "output": output, "rows": rows})
        left = [name for name in left if name not in done and name not in begun]
    return found + [{"case": name, "skipped": f"the {arguments.seconds:.0f} s were used up"} for name in left]


def watched(process: "subprocess.Popen[bytes]", lines: Path, deadline: float) -> str:
    """Wait for the end of a process; end it at the deadline or when it is stuck. How it ended."""
    size, since = -1, time.monotonic()
    while process.poll() is None:
        time.sleep(0.1)
        now = time.monotonic()
        if lines.stat().st_size != size:
            size, since = lines.stat().st_size, now
        if now - since > PATIENCE or now > deadline:
            process.kill()
            process.wait()
            return "it was ended: the time was used up" if now > deadline else f"stuck for {PATIENCE} s"
    return f"the process ended with status {process.returncode}"


def machine(dry: bool) -> Record:
    """The GPU and the versions."""
    found: Record = {"torch": torch.__version__, "python": sys.version.split()[0], "cpus": os.cpu_count()}
    if not dry:
        import triton  # noqa: PLC0415

        properties = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "second_level_cache_bytes": getattr(properties, "L2_cache_size", None),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "triton": triton.__version__,
        }
    return found


def main() -> int:
    """Measure all that fits, write a file, exit with 1 if a case failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--seconds", type=float, default=300, help="what does not fit is left out, and said so")
    parser.add_argument("--data-dir", type=Path, help="the four files of MNIST; without it scikit-learn's digits")
    parser.add_argument("--only", action="append", help="cases whose name holds this; several times for several")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--case", action="append", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        return measure(arguments.case, arguments.dry_run, arguments.data_dir, arguments.measure)
    if not arguments.dry_run and not torch.cuda.is_available():
        print("gpu: torch finds no GPU here.")
        return 1
    # Starting the device takes seconds: before the clock of the cases runs.
    described = machine(arguments.dry_run)
    with TemporaryDirectory() as folder:
        cases = supervise(arguments, Path(folder) / "lines")
    content = {
        "machine": described,
        "settings": {"sizes": asdict(TINY if arguments.dry_run else Sizes()), "seconds": arguments.seconds},
        "cases": cases,
    }
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")
    for case in cases:
        state = case.get("error") or case.get("skipped") or f"{case.get('seconds_taken', 0):.1f} s"
        print(f"{case['case']}: {state}")
        for each in case.get("bars", ()):
            met = "met" if each["met"] else "not met"
            print(f"  {each['what']}: {each['times_as_fast']:.2f} of {each['bar']}, {met}")
    return 1 if any("error" in case for case in cases) else 0


if __name__ == "__main__":
    sys.exit(main())
