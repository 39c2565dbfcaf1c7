"""What a training stands on while it runs: its folder and its data, which other programs may delete, move or cut."""

import os
from collections.abc import Iterable
from pathlib import Path

from gpt2lab.errors import TrainingError


class LostFolderError(TrainingError):
    """The run folder is not the one that it was; a checkpoint was saved in a new one."""


class Surroundings:
    """The run folder and the files of the data, as they are now.

    Args:
        run: the run folder, if there is one; its lock, settings and tokenizer have to stay.
        data: files that ids are read from while training goes on. A file that is cut ends the process when a part is
            read that is not there any more, so this is looked at often.
    """

    def __init__(self, run: Path | None, data: Iterable[Path]) -> None:
        self.run = run
        self.sizes = {path: path.stat().st_size for path in data}
        if run is not None:
            self.folder = run.stat()
            needed = (run / name for name in (".lock", "config.yaml", "tokenizer.json"))
            self.needed = [path for path in needed if path.exists()]

    def wrong(self, step: int) -> list[TrainingError]:
        """What has happened to them since that ends the training, of which that step is saved then."""
        found: list[TrainingError] = []
        if self.run is not None and self._is_lost(self.run):
            found.append(
                LostFolderError(
                    f"the run folder {self.run} was deleted, moved or emptied while it was trained into; a checkpoint "
                    f"of step {step} is saved in a new one of that name: gpt2lab train --resume {self.run}"
                )
            )
        for path, before in self.sizes.items():
            now = path.stat().st_size if path.exists() else 0
            if now != before:
                how = "" if self.run is None else f"; step {step} is saved: gpt2lab train --resume {self.run}"
                told = f"{path}, which is trained on, had {before:,} bytes and has {now:,} now"
                found.append(TrainingError(f"{told}: another program has changed it{how}"))
        return found

    def _is_lost(self, run: Path) -> bool:
        try:
            return not (os.path.samestat(self.folder, run.stat()) and all(path.exists() for path in self.needed))
        except OSError:
            return True
