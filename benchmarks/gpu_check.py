"""Everything that only a machine with a GPU can check, in under ten minutes and without a network: `make gpu-check`.

    python benchmarks/gpu_check.py --out results/gpu-check.json

Builds the native library, runs the tests on the GPU, compute-sanitizer on small shapes where it is there, and the GPU
benchmarks. One JSON file holds the machine, the versions, every step and every figure; it is written anew after each
step, and the whole output of each step lies beside it. A step that fails leaves the others to run.

Exits with 1 if there is no GPU or a step failed. Bars that a benchmark does not reach are shown, and are no failure.
"""

import argparse
import ctypes
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TESTS = "tests/kernels"
NETWORKS = "tests/multitask/test_devices.py"
NOT_HERE = "not on this machine"
REFUSED = "refused by the device or system"
LEAST_FOR_BENCHMARKS = 60
# What ending a stuck step, and the end of this script, may take.
RESERVE = 15

Record = dict[str, Any]

VERSIONS = """
import json, platform, torch, triton
p = torch.cuda.get_device_properties(0)
print(json.dumps({
    "gpu": p.name, "capability": f"{p.major}.{p.minor}", "multiprocessors": p.multi_processor_count,
    "gpus": torch.cuda.device_count(), "memory_bytes": p.total_memory,
    "second_level_cache_bytes": getattr(p, "L2_cache_size", None),
    "system": platform.platform(), "python": platform.python_version(), "torch": torch.__version__,
    "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "triton": triton.__version__,
}))
"""


def gpus() -> int:
    """How many GPUs the driver shows; asked of the driver itself, so that it takes no time where there is none."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        # A driver out of the loader's sight: let torch look.
        return int(Path("/dev/nvidia0").exists())
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


class Check:
    """The steps so far, and the file they are written to."""

    def __init__(self, out: Path, seconds: float):
        out = out.resolve()
        self.out = out = out / "gpu-check.json" if out.is_dir() else out
        self.logs = out.parent / f"{out.stem}-logs"
        self.start = time.monotonic()
        self.deadline = self.start + seconds
        self.content: Record = {"machine": {}, "steps": [], "benchmarks": {}}
        self._lock = threading.Lock()
        self.logs.mkdir(parents=True, exist_ok=True)

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def record(self, step: Record) -> None:
        """Add a step, and say how it went."""
        with self._lock:
            self.content["steps"].append(step)
            print(f"{step['name']}: {step['status']}, {step['seconds']:.0f} s", flush=True)
        self.write()

    def write(self) -> None:
        """The file, whole or as it was."""
        with self._lock:
            self.content["seconds"] = time.monotonic() - self.start
            partial = self.out.with_suffix(".partial")
            partial.write_text(json.dumps(self.content, indent=1, default=str) + "\n")
            partial.replace(self.out)

    def step(
        self,
        name: str,
        command: Sequence[str | Path],
        limit: float,
        environment: dict[str, str] | None = None,
        judge: Callable[[int, str], tuple[str, Record]] | None = None,
    ) -> Record:
        """Run a command, and record how it went.

        Args:
            name: of the step.
            command: with its arguments.
            limit: seconds, less where less is left; then it is interrupted, and killed if that does not end it.
            environment: added to this process's.
            judge: (exit status, output) -> the status "ok", "failed" or another word, and what else to record.
        """
        began = time.monotonic()
        log = self.logs / f"{re.sub(r'[^a-z0-9]+', '-', name.lower())}.txt"
        limit = max(1.0, min(limit, self.left - RESERVE))
        timed_out, status, output = False, -1, ""
        try:
            with log.open("w") as file:
                process = subprocess.Popen(
                    [str(part) for part in command],
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                    cwd=ROOT,
                    env=os.environ | paths() | (environment or {}),
                    start_new_session=True,
                )
                timed_out = not ended(process, limit)
                status = process.returncode
            output = log.read_text(errors="replace").replace(str(ROOT), ".")
            found, more = (judge or by_status)(status, output)
        except Exception as error:
            found, more = "failed", {"error": f"{type(error).__name__}: {error}"}
        record: Record = {
            "name": name,
            "status": f"out of time after {limit:.0f} s" if timed_out else found,
            "exit_status": status,
            "seconds": time.monotonic() - began,
            **more,
            "tail": output[-6000:],
        }
        self.record(record)
        return record


def paths() -> dict[str, str]:
    """Where the packages are, so that nothing depends on their being installed."""
    given = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "python"), *([given] if given else [])])}


def ended(process: "subprocess.Popen[bytes]", limit: float) -> bool:
    """Wait; whether it ended by itself. Interrupted first, so that pytest still says what failed."""
    try:
        process.wait(limit)
        return True
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        process.wait(8)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return False


def by_status(status: int, output: str) -> tuple[str, Record]:
    """ok if it exits with 0."""
    return ("ok" if status == 0 else "failed"), {}


def of_pytest(status: int, output: str) -> tuple[str, Record]:
    """Counts, and every test that failed."""
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)\b", output)}
    failed = re.findall(r"^(?:FAILED|ERROR) (.*)$", output, re.MULTILINE)
    found = "ok" if status == 0 and counts.get("passed") else "failed"
    return found, {"counts": counts, "failed": failed[:200]}


def of_sanitizer(status: int, output: str) -> tuple[str, Record]:
    """What it found; a tool that does not run on this device is no error of ours."""
    summaries = re.findall(r"^========= ((?:ERROR|RACECHECK) SUMMARY: .*)$", output, re.MULTILINE)
    refused = re.search(r"Device not supported|Operation not permitted|LibraryNotLoaded", output)
    more: Record = {"summaries": summaries}
    if summaries and re.search(r"[1-9]\d* (?:errors?|hazards?)\b", " ".join(summaries)) and not refused:
        return "failed", more
    if refused:
        return REFUSED, more | {"reason": refused[0]}
    return ("ok" if status == 0 and summaries else "failed"), more


def pytest_command(files: Sequence[Path], processes: int, *more: str, device: bool = True) -> list[str]:
    """pytest on the GPU, which the tests of kernels are told; in several processes where xdist is there."""
    command = [sys.executable, "-m", "pytest", *map(str, files), "-q", "--tb=short", "-p", "no:cacheprovider"]
    command += ["--device", "cuda"] if device else []
    if processes > 1 and importlib.util.find_spec("xdist"):
        command += ["-n", str(processes)]
        if importlib.util.find_spec("pytest_timeout"):
            command += ["--timeout", "120"]
    return [*command, *more]


def workers() -> int:
    """Processes that share one GPU and its host."""
    return max(1, min(14, (os.cpu_count() or 1) - 2))


def sanitize(check: Check, name: str) -> None:
    """A tool of compute-sanitizer on the small shapes, every kernel once."""
    tool = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    step = f"compute-sanitizer {name}"
    if tool is None:
        check.record({"name": step, "status": NOT_HERE, "seconds": 0})
        return
    options = ["--tool", name, "--error-exitcode", "99", "--report-api-errors", "no", "--print-limit", "20"]
    tests = pytest_command([ROOT / TESTS / "test_gpu.py"], 1, "-k", "test_small_shapes and bfloat16")
    # Every allocation on its own, so that a read behind one is seen.
    check.step(step, [tool, *options, *tests], 100, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, of_sanitizer)


def run_tests(check: Check) -> None:
    """The tests of the GPU alone, then the contract of every backend there, the Triton kernels first."""
    tests = ROOT / TESTS
    contract = sorted(tests.glob("test_contract_*.py"))
    # The oracle computes on the CPU: as many threads as there are cores, all processes together.
    threads = {"OMP_NUM_THREADS": "1"}
    check.step("GPU tests", pytest_command([tests / "test_gpu.py"], workers()), 120, threads, of_pytest)
    with ThreadPoolExecutor(2) as beside:
        watching = [beside.submit(sanitize, check, name) for name in ("memcheck", "racecheck")]
        command = pytest_command(contract, max(1, workers() - 2), "-k", "triton")
        check.step("contract tests, triton", command, 150, threads, of_pytest)
        for each in watching:
            each.result()
    check.step("networks", pytest_command([ROOT / NETWORKS], 1, device=False), 60, threads, of_pytest)
    command = pytest_command(contract, workers(), "-k", "not triton")
    check.step("contract tests, dense and reference", command, 100, threads, of_pytest)


def describe(check: Check) -> bool:
    """The machine and the versions; whether torch sees the GPU."""
    seen = check.step("machine", [sys.executable, "-c", VERSIONS], 90)
    if seen["status"] != "ok":
        return False
    check.content["machine"] = json.loads(next(line for line in seen["tail"].splitlines() if line.startswith("{")))
    for name, command in {
        "driver": ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
        "nvcc": ["nvcc", "--version"],
        "clocks": ["nvidia-smi", "--query-gpu=clocks.sm,clocks.mem,power.limit,temperature.gpu", "--format=csv"],
    }.items():
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
            check.content["machine"][name] = done.stdout.strip()[-300:]
        except (OSError, subprocess.TimeoutExpired) as error:
            check.content["machine"][name] = f"not known: {error}"
    check.write()
    return True


def measure(check: Check, data_dir: Path | None) -> None:
    """The benchmarks, in the time that is left."""
    seconds = check.left - 2 * RESERVE
    if seconds < LEAST_FOR_BENCHMARKS:
        check.record({"name": "benchmarks", "status": f"left out: {check.left:.0f} s were left", "seconds": 0})
        return
    out = check.logs / "benchmarks.json"
    # It starts before its clock does.
    command = [sys.executable, ROOT / "benchmarks/gpu.py", "--seconds", f"{seconds - RESERVE:.0f}", "--out", out]
    command += ["--data-dir", data_dir] if data_dir else []
    check.step("benchmarks", command, seconds + RESERVE)
    try:
        check.content["benchmarks"] = json.loads(out.read_text())
    except (OSError, ValueError) as error:
        check.content["benchmarks"] = {"error": str(error)}
    check.write()


def show(content: Record) -> None:
    """Steps and bars in two short tables."""
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    console = Console(width=120)
    steps = Table(title=f"{content['machine'].get('gpu', 'GPU')}: steps")
    for name in ("step", "status", "seconds", "tests"):
        steps.add_column(name)
    for step in content["steps"]:
        counts = " ".join(f"{number} {word}" for word, number in step.get("counts", {}).items())
        steps.add_row(step["name"], str(step["status"]), f"{step.get('seconds', 0):.0f}", counts)
    console.print(steps)
    bars = Table(title="times as fast as the dense library")
    for name in ("case", "what", "times", "bar", ""):
        bars.add_column(name)
    for case in content["benchmarks"].get("cases", ()):
        for each in case.get("bars", ()):
            met = "met" if each["met"] else "not met"
            bars.add_row(case["case"], each["what"], f"{each['times_as_fast']:.2f}", str(each["bar"]), met)
        if "error" in case or "skipped" in case:
            bars.add_row(case["case"], str(case.get("error") or case["skipped"])[:70], "", "", "")
    console.print(bars)


def main() -> int:
    """Run the steps, write the file, show the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "results/gpu-check.json")
    parser.add_argument("--seconds", type=float, default=540, help="for all of it")
    parser.add_argument("--data-dir", type=Path, help="the four files of MNIST, for the benchmarks' masks")
    arguments = parser.parse_args()
    if gpus() == 0:
        print("gpu-check: there is no GPU here that the NVIDIA driver shows.")
        return 1
    check = Check(arguments.out, arguments.seconds)
    if describe(check):
        pip = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--no-index"]
        check.step("build", [*pip, "--disable-pip-version-check", "--editable", "."], 100)
        run_tests(check)
        measure(check, arguments.data_dir)
    check.write()
    failed = [step["name"] for step in check.content["steps"] if step["status"] not in ("ok", NOT_HERE, REFUSED)]
    try:
        show(check.content)
    except Exception as error:
        print(f"no table: {type(error).__name__}: {error}")
    print(f"written to {check.out}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
