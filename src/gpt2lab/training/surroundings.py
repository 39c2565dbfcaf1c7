"""What a training stands on while it runs: its folder and its data, which other programs may delete, move or cut."""

import contextlib
import os
import shlex
from pathlib import Path

from gpt2lab.errors import TrainingError


class LostFolderError(TrainingError):
    """The run folder is not the one that it was; a checkpoint was saved in a new one."""


class Surroundings:
    """The run folder and the files of the data, as they are now.

    Args:
        run: the run folder, if there is one; its lock, settings and tokenizer have to stay.
        *datasets: data sets; if they read ids from ``files`` while training goes on, these must not be cut: that would
            end the process when a part is read that is not there any more.
    """

    def __init__(self, run: Path | None, *datasets: object) -> None:
        self.run = run
        data: list[Path] = [path for each in datasets for path in getattr(each, "files", ())]
        self.sizes = {path: path.stat().st_size for path in data}
        if run is not None:
            self.folder = run.stat()
            needed = (run / name for name in (".lock", "config.yaml", "tokenizer.json"))
            self.needed = [path for path in needed if path.exists()]

    def wrong(self, step: int, data: bool) -> list[TrainingError]:
        """What has happened to them since that ends the training.

        Args:
            step: the one that is saved then.
            data: whether to look at the data, too, which may be in a thousand files.
        """
        found: list[TrainingError] = []
        again = shlex.quote(str(self.run))
        if self.run is not None and self._is_lost(self.run):
            found.append(
                LostFolderError(
                    f"the run folder {self.run} was deleted, moved or emptied while it was trained into; a checkpoint "
                    f"of step {step} is saved in a new one of that name: gpt2lab train --resume {again}"
                )
            )
        for path, before in self.sizes.items() if data else ():
            now = before
            with contextlib.suppress(OSError):  # a deleted file is there as long as it is open
                now = path.stat().st_size
            if now != before:
                how = "" if self.run is None else f"; step {step} is saved: gpt2lab train --resume {again}"
                told = f"{path}, which is trained on, had {before:,} bytes and has {now:,} now"
                found.append(TrainingError(f"{told}: another program has changed it{how}"))
        return found

    def _is_lost(self, run: Path) -> bool:
        try:
            return not (os.path.samestat(self.folder, run.stat()) and all(path.exists() for path in self.needed))
        except OSError:
            return True
