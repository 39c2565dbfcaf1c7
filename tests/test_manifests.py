"""Manifests: damage is found; files are replaced such that a crash leaves what the manifest knows; and what is not."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from gpt2lab.data import CharTokenizer, load_tokenizer
from gpt2lab.errors import InputError
from gpt2lab.files import sweep
from gpt2lab.manifests import Manifest, list_all, replace_files, verify_files, verify_if_listed


class CrashError(Exception):
    """The machine goes away."""


def test_files_are_listed_and_any_change_is_found(tmp_path: Path) -> None:
    replace_files(tmp_path, {"a": b"one", "b": lambda path: path.write_bytes(b"two")})
    assert verify_files(tmp_path)
    for change in (b"", b"ones", b"onf"):
        (tmp_path / "a").write_bytes(change)
        with pytest.raises(InputError, match=r"/a is damaged, or was edited"):
            verify_files(tmp_path, ["a"])
        verify_files(tmp_path, ["b"])
    (tmp_path / "a").unlink()
    with pytest.raises(InputError, match=r"there is no file .*/a"):
        verify_files(tmp_path)
    replace_files(tmp_path, {"a": b"three"})
    assert verify_files(tmp_path)
    (tmp_path / "c").write_bytes(b"")
    with pytest.raises(InputError, match=r"/c is damaged: it is not among the files"):
        verify_files(tmp_path)
    verify_if_listed(tmp_path / "c")  # which nobody has listed
    verify_if_listed(tmp_path / "a")


def test_a_folder_without_a_manifest_says_so(tmp_path: Path) -> None:
    assert not verify_files(tmp_path)
    list_all(tmp_path)
    assert verify_files(tmp_path)


@pytest.mark.parametrize(
    "content",
    ["", "{", '{"format": 9, "files": {}}', '{"format": 1, "files": 5}', '{"../a": {"bytes": 1, "sha256": ""}}'],
)
def test_a_damaged_manifest_is_one_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(InputError, match=r"manifest\.json (is damaged|has the format 9)"):
        Manifest.read(tmp_path)


def test_a_crash_while_files_are_replaced_leaves_all_old_all_new_or_a_folder_that_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends before any of its renames; whatever verifies as whole is one of the two."""
    old, new = {"a": b"old a", "b": b"old b"}, {"a": b"new a", "b": b"new b"}
    replace: Callable[..., object] = Path.replace
    seen = []
    for crash in range(8):
        folder = tmp_path / str(crash)
        replace_files(folder, old)
        left = crash

        def crashing(path: Path, target: Path) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                raise CrashError
            return replace(path, target)

        monkeypatch.setattr(Path, "replace", crashing)
        with contextlib.suppress(CrashError):
            replace_files(folder, new)
        monkeypatch.setattr(Path, "replace", replace)
        found = {name: (folder / name).read_bytes() for name in old}
        if found in (old, new):
            verify_files(folder, list(old))
        else:
            with pytest.raises(InputError, match="half of it is new"):
                verify_files(folder, list(old))
        seen.append("old" if found == old else "new" if found == new else "half")
        replace_files(folder, new)  # goes on from anything
        verify_files(folder)
    assert seen == ["old", "old", "half", "new", "new", "new", "new", "new"]


@pytest.mark.parametrize("content", ["[]", '{"name": "my app", "icons": []}', '{"files": ["a", "b"]}', "{}"])
def test_a_manifest_of_another_program_is_left_alone(tmp_path: Path, content: str) -> None:
    tokenizer = CharTokenizer("abc")
    (tmp_path / "manifest.json").write_text(content)
    tokenizer.save(tmp_path / "tokenizer.json")
    assert load_tokenizer(tmp_path / "tokenizer.json").fingerprint() == tokenizer.fingerprint()
    with pytest.raises(InputError, match=r"manifest\.json is of another program"):
        replace_files(tmp_path, {"a": b""})
    assert (tmp_path / "manifest.json").read_text() == content


def test_what_was_being_replaced_is_still_known_after_others_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_files(tmp_path, {"a": b"old", "b": b"b"})
    write = Manifest.write
    monkeypatch.setattr(Manifest, "write", lambda of, folder: write(of, folder) if of.becoming else fail())
    with pytest.raises(CrashError):
        replace_files(tmp_path, {"a": b"new"})
    monkeypatch.setattr(Manifest, "write", write)
    replace_files(tmp_path, {"b": b"other"})
    assert (tmp_path / "a").read_bytes() == b"new"
    assert verify_files(tmp_path)


def fail() -> None:
    raise CrashError


def test_what_a_killed_write_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    mine = tmp_path / "thesis.tmp"
    remains = tmp_path / f"config.yaml.{'0a' * 16}.tmp"
    for path in (mine, remains):
        path.touch()
    sweep(tmp_path, unchanged=1000)
    assert remains.exists()
    sweep(tmp_path)
    assert [*tmp_path.iterdir()] == [mine]
