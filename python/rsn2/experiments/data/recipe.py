"""How a data set is made, whichever it is: found, read, checked, cached, and handed over as tensors."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from rsn2.experiments.config import Kind
from rsn2.experiments.data import cache, hub
from rsn2.experiments.data.dataset import PARTS, DataError, DataSet, MissingDataError
from rsn2.experiments.data.files import Blob, File, read_checked

Raw = TypeVar("Raw")


@dataclass(frozen=True)
class Source:
    """Where data may come from.

    Attributes:
        folder: laid out as docs/data.md says; None: there is none.
        hub: get a data set of which the folder has no file through Hugging Face `datasets`, if that is installed.
        accept_unknown: take files with other checksums and other numbers of samples.
        cache: folder where decoded and tokenised data is kept; None keeps nothing. What comes from the hub is not
            kept: `datasets` has its own cache.
    """

    folder: Path | None = None
    hub: bool = True
    accept_unknown: bool = False
    cache: Path | None = None


@dataclass(frozen=True)
class Prepared:
    """A data set in the form that is cached.

    Attributes:
        tensors: "train.inputs", "train.<target>" and so on, for the parts train, val and test. Inputs are uint8
            images ``[n, channels, height, width]``, int32 word numbers ``[n, length]`` or float32 features.
        classes: target -> names of its classes; empty for regression.
        facts: as JSON can hold them.
    """

    tensors: dict[str, Tensor]
    classes: dict[str, list[str]]
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe(Generic[Raw]):
    """All that is particular about one source.

    Attributes:
        name: of the source, such as "utkface".
        targets: names of the data sets made from it, such as "utkface_age"; they share their inputs.
        kind: of all of them.
        files: in the data folder.
        where: where to get them, for people.
        hub: the source's name on the Hugging Face hub.
        from_files: parses the files, in their order.
        from_hub: gets the same through `datasets`.
        prepare: checks, splits and encodes; its second argument says whether numbers of samples must be the
            published ones.
        version: changes when the same files give other tensors.
    """

    name: str
    targets: tuple[str, ...]
    kind: Kind
    files: tuple[File, ...]
    where: str
    hub: str
    from_files: Callable[[Sequence[Blob]], Raw]
    from_hub: Callable[[], Raw]
    prepare: Callable[[Raw, bool], Prepared]
    version: int = 1

    def load(self, source: Source) -> dict[str, DataSet]:
        """The data sets of this source, by name; their input tensors are shared.

        Raises:
            MissingDataError: if it is not there; says what to get.
            DataError: if a file is damaged, another than expected, or does not hold what it should; names it.
            MissingPackageError: if a package is missing that its files need.
        """
        if source.folder is not None and not source.folder.is_dir():
            raise MissingDataError(f"{source.folder}: no such folder. {self._wanted()}")
        missing = self.missing(source.folder)
        if source.folder is not None and not missing:
            return self._from_folder(source.folder, source)
        if len(missing) < len(self.files):
            raise MissingDataError(
                f"{self.name}: of its files, {', '.join(file.path for file in missing)} are missing in "
                f"{source.folder}. {self._wanted()}"
            )
        if source.hub and hub.installed():
            prepared = self.prepare(self.from_hub(), not source.accept_unknown)
            return self._finish(prepared, {"source": "hub", "hub": self.hub})
        raise MissingDataError(f"{self.name}: {self._why_not(source)}. {self._wanted()}")

    def missing(self, folder: Path | None) -> list[File]:
        """The files that a folder does not have."""
        return [file for file in self.files if folder is None or not (folder / file.path).is_file()]

    def _from_folder(self, folder: Path, source: Source) -> dict[str, DataSet]:
        blobs = [read_checked(folder, file, accept_unknown=source.accept_unknown) for file in self.files]
        hashes = {blob.file.path: blob.sha256 for blob in blobs}
        key = cache.key(self.name, self.version, hashes)
        kept = cache.find(source.cache, self.name, key)
        if kept is None:
            prepared = self.prepare(self.from_files(blobs), not source.accept_unknown)
            about = {"classes": prepared.classes, "facts": prepared.facts}
            cache.keep(source.cache, self.name, key, prepared.tensors, about)
        else:
            prepared = Prepared(kept[0], kept[1]["classes"], kept[1]["facts"])
        return self._finish(prepared, {"source": "folder", "files": hashes})

    def _finish(self, prepared: Prepared, origin: Mapping[str, Any]) -> dict[str, DataSet]:
        inputs = {part: _as_inputs(prepared.tensors[f"{part}.inputs"]) for part in PARTS}
        made = {}
        for target in self.targets:
            pairs = {part: (inputs[part], prepared.tensors[f"{part}.{target}"]) for part in PARTS}
            sizes = {part: len(inputs[part]) for part in PARTS}
            # As they come back from a file, so that a cache changes nothing.
            facts = json.loads(json.dumps({**origin, "samples": sizes, **prepared.facts}))
            made[target] = DataSet(target, self.kind, tuple(prepared.classes[target]), **pairs, facts=facts)
        return made

    def _why_not(self, source: Source) -> str:
        place = "no data folder was given" if source.folder is None else f"{source.folder} has none of its files"
        return place + (", and the package `datasets` is not installed" if source.hub else "")

    def _wanted(self) -> str:
        files = "; ".join(f"{file.path} ({file.size:,} bytes, SHA-256 {file.sha256})" for file in self.files)
        return (
            f"{self.name} needs, in the data folder: {files}. Get them from {self.where}; or, instead, "
            f"`pip install datasets` and leave them out: {self.hub} is then fetched from the Hugging Face hub."
        )


def _as_inputs(stored: Tensor) -> Tensor:
    """What is cached to what a network takes: pixels to 0..1, word numbers to int64."""
    if stored.dtype == torch.uint8:
        return stored.to(torch.float32).div_(255)
    return stored.to(torch.int64) if stored.dtype == torch.int32 else stored


def expect(holds: bool, where: str, expected: str, got: object) -> None:
    """Raise unless something holds.

    Raises:
        DataError: "<where>: expected <expected>. Got <got>."
    """
    if not holds:
        raise DataError(f"{where}: expected {expected}. Got {got}.")
