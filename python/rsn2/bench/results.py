"""A run: its records, kept as they come in a file of JSON lines, and in the end one JSON file."""

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch

from rsn2 import machine
from rsn2.bench.baselines import DENSE, OURS
from rsn2.bench.cases import Case
from rsn2.bench.measure import Record, Settings, merged, record
from rsn2.bench.noise import Verdict, control_error, is_unsure, speed, verdict
from rsn2.bench.peaks import Peaks, best_of, measure_peaks
from rsn2.bench.quiet import Probe

FORMAT = 1
# Passes of cases that are measured before what the machine reaches is measured again.
_BETWEEN_PEAKS = 100
FILE = "bench.json"
UNFINISHED = "unfinished.jsonl"
_OF_TIMED = ("baseline", "bytes", "macs", "dtype")

Tell = Callable[[str, int, int], None]


class BenchError(Exception):
    """A results file or a folder that cannot be used; names it."""


@dataclass
class Results:
    """What one run found.

    Attributes:
        about: "machine", "commit" and "settings".
        peaks: what the machine reached, measured at the beginning, after every interruption, now and then, and at the
            end.
        records: a record per case (:func:`rsn2.bench.measure.record`).
        loads: processes that wanted to run, on average over the minute before the run began or went on.
    """

    about: dict[str, Any]
    peaks: list[Peaks] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    loads: list[float | None] = field(default_factory=list)

    def add(self, found: Record) -> None:
        """A case, or a further pass of one."""
        for place, known in enumerate(self.records):
            if known["key"] == found["key"]:
                self.records[place] = merged(known, found)
                return
        self.records.append(found)

    def of(self, case: Case) -> Record | None:
        """What is known of a case."""
        return next((found for found in self.records if found["key"] == case.key), None)

    @property
    def peak(self) -> Peaks:
        """The best that the machine reached: when it was measured, and in the dense call of any linear case.

        Less is contention. What other calls multiply depends on how a library goes about it.
        """
        dense = [
            {found["dtype"][DENSE]: found["macs"][DENSE] / median(found["seconds"][DENSE])}
            for found in self.records
            if found["case"]["op"] == "linear" and "seconds" in found
        ]
        return best_of([*self.peaks, *dense])

    @property
    def verdict(self) -> Verdict:
        """Whether the machine was quiet enough."""
        timed = [found for found in self.records if "seconds" in found]
        ours = [found for found in timed if OURS in found["seconds"]]
        return verdict(
            [control_error(found) for found in timed],
            [speed(found, OURS) for found in ours],
        )

    @property
    def wrong(self) -> list[str]:
        """Calls of this package whose result, or gradient of x, was not that of the reference, with their cases."""
        return [f"{name} in {found['key']}" for found in self.records for name in found.get("wrong", ())]

    def write(self, path: Path) -> None:
        """As JSON."""
        content = {"format": FORMAT, **self.about, "verdict": asdict(self.verdict)}
        content |= {"peaks": self.peaks, "loads": self.loads, "records": self.records}
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".new")
        # A record per line: every sample is in it, and a file of a line per number is read by nobody.
        records = ",\n".join(json.dumps(found) for found in content.pop("records"))
        head = json.dumps(content, indent=1).removesuffix("\n}")
        beside.write_text(f'{head},\n "records": [\n{records}\n]}}\n', encoding="utf-8")
        os.replace(beside, path)

    @classmethod
    def read(cls, path: Path) -> "Results":
        """From JSON.

        Raises:
            BenchError: if it is no results file of `rsn2 bench`.
            OSError: if it cannot be read.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise BenchError(f"{path}: expected format {FORMAT}. Got {content['format']}.")
            about = {key: content[key] for key in ("machine", "commit", "settings", "finished") if key in content}
            records = [_checked(found) for found in content["records"]]
            return cls(about, content["peaks"], records, content["loads"])
        except (ValueError, KeyError, TypeError) as error:
            raise BenchError(f"{path}: no results file of `rsn2 bench` ({error!r}).") from error


def run(
    cases: Iterable[Case], settings: Settings, folder: Path, *, fresh: bool = False, tell: Tell | None = None
) -> Results:
    """Measure all cases that the folder does not hold yet, and write ``bench.json`` there.

    Args:
        cases: what to measure.
        settings: how; torch has that number of threads from here on, and the C library keeps what tensors free.
        folder: made if missing. What an interrupted run left there is kept and not measured again.
        fresh: remove a run that is there, finished or not, and measure all.
        tell: hears, before each case, its key, its number from 0 on, and how many there are.

    Raises:
        BenchError: if the folder holds a finished run with other settings, or an unfinished one with other settings, of
            another commit or machine.
    """
    torch.set_num_threads(settings.threads)
    machine.keep_memory()
    folder.mkdir(parents=True, exist_ok=True)
    path, finished = folder / UNFINISHED, folder / FILE
    if fresh:
        for each in (path, finished):
            each.unlink(missing_ok=True)
    if finished.exists():
        _check_replaceable(finished, settings)
    about = {"machine": machine.facts(settings.device), "commit": machine.commit(), "settings": asdict(settings)}
    results = _resumed(path, about) if path.exists() else Results(about)
    todo = list(cases)
    dtypes = sorted({"float32", *(case.dtype for case in todo)})
    with path.open("a", encoding="utf-8") as file:

        def keep(kind: str, what: Any) -> None:
            file.write(json.dumps({kind: what}) + "\n")
            file.flush()

        def add_peaks() -> None:
            results.peaks.append(measure_peaks(dtypes, settings.device, settings.seconds))
            keep("peaks", results.peaks[-1])

        if not results.loads:
            keep("about", about)
        probe = Probe() if torch.device(settings.device).type == "cpu" else None
        results.loads.append(machine.load())
        keep("load", results.loads[-1])
        add_peaks()
        measured, turns = 0, settings.passes + settings.further
        for turn in range(turns):
            left = todo if turn < settings.passes else [case for case in todo if _is_unsure(results, case)]
            for number, case in enumerate(left):
                if tell is not None:
                    tell(case.key, int((turn + number / len(left)) / turns * len(todo)), len(todo))
                if not _done(results, case, turn):
                    found = record(case, settings, results.peak, probe, results.of(case))
                    results.add(found)
                    keep("record", found)
                    measured += 1
                    if measured % _BETWEEN_PEAKS == 0:
                        add_peaks()
        add_peaks()
    results.about["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
    results.write(finished)
    path.unlink()
    return results


def _done(results: Results, case: Case, turn: int) -> bool:
    """Whether this pass is known, or no further one is of use: bytes have no noise, and what was skipped stays so."""
    known = results.of(case)
    return known is not None and (known["passes"] > turn or "seconds" not in known)


def _is_unsure(results: Results, case: Case) -> bool:
    known = results.of(case)
    return known is not None and "seconds" in known and is_unsure(known, OURS)


def _checked(found: Any, *needed: str) -> Record:
    """A record from JSON.

    Raises:
        TypeError: if it, or its case, is none.
        KeyError: if it lacks what every record has, or what is needed here.
    """
    for name in ("key", "case", *needed, *(_OF_TIMED if "seconds" in found else ())):
        found[name]
    Case.from_dict(found["case"])
    known: Record = found
    return known


def _check_replaceable(path: Path, settings: Settings) -> None:
    """Whether a finished run is one with these settings.

    Raises:
        BenchError: if it is not, or the file is none of a run.
    """
    known = asdict(Settings()) | Results.read(path).about.get("settings", {})
    if other := [f"{name} {known[name]!r}" for name, value in asdict(settings).items() if known[name] != value]:
        raise BenchError(
            f"{path}: a finished run with other settings ({', '.join(other)}). Give another folder with --out, or "
            f"replace it with --fresh."
        )


def _resumed(path: Path, about: dict[str, Any]) -> Results:
    """What an interrupted run left; a last line that was cut off does not count, and is taken away.

    Raises:
        BenchError: if it is a run with another `about`, or another line is broken.
    """
    results, whole = Results(about), []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            break
        try:
            ((kind, what),) = json.loads(line).items()
            if kind == "about" and (other := [key for key in about if json.loads(json.dumps(about[key])) != what[key]]):
                raise BenchError(
                    f"{path}: an unfinished run with another {', '.join(other)}. Go on with it there, give another "
                    f"folder, or remove it with --fresh."
                )
            if kind == "load":
                results.loads.append(what)
            elif kind == "peaks":
                results.peaks.append(what)
            elif kind == "record":
                results.add(_checked(what, "passes", "taken"))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BenchError(
                f"{path}: line {number} is none of an unfinished run ({error!r}). Give another folder, or remove it "
                f"with --fresh."
            ) from error
        whole.append(line)
    path.write_bytes(b"".join(whole))
    return results
