"""Files that are whole or absent."""

import os
import stat
from pathlib import Path

import pytest

from gpt2lab.errors import InputError
from gpt2lab.files import atomic_write, new_file
from gpt2lab.manifests import replace_files
from gpt2lab.model import GPT2
from gpt2lab.runs.folder import TrainingState
from gpt2lab.training.checkpoint import Snapshot, save_checkpoint


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write_half_of_it() -> None:
        with atomic_write(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half_of_it()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    with atomic_write(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"


def test_files_get_the_rights_that_the_umask_leaves(tmp_path: Path) -> None:
    model = GPT2(5, 4, 8, 2, 8, 1, seed=0)
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "file") as file:
            file.write(b"")
        replace_files(tmp_path, {"other": b""})
        model.save(tmp_path / "model")
        save_checkpoint(tmp_path / "run", model, Snapshot.of(model, []), TrainingState(1, 1, 1.0, None))
    finally:
        os.umask(before)
    rights = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*") if path.is_file()}
    assert len(rights) > 6
    assert set(rights.values()) == {0o640}, rights


def test_a_device_is_written_to_and_never_replaced(tmp_path: Path) -> None:
    """As root a file would take the place of /dev/null itself, for all programs of the machine."""
    (tmp_path / "device").symlink_to(os.devnull)
    with atomic_write(tmp_path / "device") as file:
        file.write(b"lost")
    with pytest.raises(InputError, match="is a device or a pipe"), new_file(tmp_path / "device", force=True):
        pass
    assert (tmp_path / "device").is_char_device()
    assert [path.name for path in tmp_path.iterdir()] == ["device"]


@pytest.mark.parametrize("name", ["", ".", "/", "a folder"])
def test_a_folder_in_place_of_a_file_is_told(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a folder" / "with").mkdir(parents=True)
    with pytest.raises(OSError, match="irectory"), atomic_write(Path(name)):
        pass
    assert list(tmp_path.parent.glob("*.tmp")) == []
