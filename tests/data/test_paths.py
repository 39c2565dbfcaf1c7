"""Which files a name means: what is found, what is left out, and in which order."""

from pathlib import Path

import pytest

from gpt2lab.data import find_shards, open_corpus
from gpt2lab.data.documents import find_documents
from gpt2lab.data.paths import equal_files, find_files, without
from gpt2lab.errors import InputError
from tests.data.test_shards import by_hand

HIDDEN = [".ipynb_checkpoints/a.txt", "__MACOSX/a.txt", "deep/__MACOSX/._b.txt", "._a.txt", ".a.txt", "deep/.git/a.txt"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ["b.txt", "A.TXT", "deep/er/c.Txt", "deep/d.txt", "notes.md", "odd[1].txt", "x.txt/e.txt", *HIDDEN]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def found(folder: Path, name: str, recursive: bool = True) -> list[str]:
    files = find_files(folder / name, (".txt",), recursive=recursive)
    return [file.relative_to(folder).as_posix() for file in files]


def test_a_folder_means_the_files_with_the_endings_in_any_case_in_sorted_order(folder: Path) -> None:
    assert found(folder, ".") == ["A.TXT", "b.txt", "deep/d.txt", "deep/er/c.Txt", "odd[1].txt", "x.txt/e.txt"]
    assert found(folder, "deep") == ["deep/d.txt", "deep/er/c.Txt"]
    assert found(folder, ".", recursive=False) == ["A.TXT", "b.txt", "odd[1].txt"]


def test_a_glob_means_every_file_that_matches_it_at_any_depth_with_two_stars(folder: Path) -> None:
    assert found(folder, "*") == ["A.TXT", "b.txt", "notes.md", "odd[1].txt"]
    assert found(folder, "**/[bcde].[tT]xt") == ["b.txt", "deep/d.txt", "deep/er/c.Txt", "x.txt/e.txt"]
    assert found(folder, "deep/**") == ["deep/d.txt", "deep/er/c.Txt"]
    assert found(folder, "*/*/*") == ["deep/er/c.Txt"]


@pytest.mark.parametrize("name", ["notes.md", "odd[1].txt", *HIDDEN])
def test_a_file_that_is_named_is_meant_whatever_it_is_called(folder: Path, name: str) -> None:
    assert found(folder, name) == [name]


def test_what_is_hidden_is_found_where_the_name_spells_it(folder: Path) -> None:
    assert found(folder, ".ipynb_checkpoints") == [".ipynb_checkpoints/a.txt"]
    assert found(folder, "__MACOSX/*") == ["__MACOSX/a.txt"]
    assert found(folder, ".*") == ["._a.txt", ".a.txt"]


def test_a_name_that_means_nothing_finds_nothing(folder: Path) -> None:
    (folder / "empty").mkdir()
    for name in ("none.txt", "none/*.txt", "*.parquet", "empty"):
        assert found(folder, name) == []
    assert find_files("", (".txt",)) == ()


def test_a_tilde_is_the_home_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    for name in ("~/b.txt", "~/b*", Path("~/b.txt")):
        assert find_files(name, (".txt",)) == (folder / "b.txt",)
    assert find_files("~/deep", (".txt",))[0] == folder / "deep" / "d.txt"


def test_texts_documents_and_shards_are_found_alike(folder: Path) -> None:
    visible = find_files(folder, (".txt",))
    assert open_corpus(text=str(folder)).files == visible
    assert find_documents([folder]) == visible
    (folder / "shards").mkdir()
    for name in ("b.bin", "A.BIN", "._b.bin"):
        (folder / "shards" / name).write_bytes(by_hand([1, 2]))
    shards = find_shards(str(folder / "shards"))
    assert shards is not None
    assert [file.name for file in shards.files] == ["A.BIN", "b.bin"]
    assert find_shards(str(folder)) is None  # shards are looked for in the folder itself


def test_a_link_to_a_folder_above_does_not_lead_round_in_circles(folder: Path) -> None:
    before = found(folder, ".")
    (folder / "deep" / "up").symlink_to(folder, target_is_directory=True)
    assert found(folder, ".") == before


@pytest.mark.parametrize(
    ("patterns", "left"),
    [
        ([], ["A.TXT", "b.txt", "deep/d.txt", "deep/er/c.Txt", "odd[1].txt", "x.txt/e.txt"]),
        (["b.txt"], ["A.TXT", "deep/d.txt", "deep/er/c.Txt", "odd[1].txt", "x.txt/e.txt"]),
        (["?.txt"], ["A.TXT", "deep/er/c.Txt", "odd[1].txt"]),
        (["deep"], ["A.TXT", "b.txt", "odd[1].txt", "x.txt/e.txt"]),
        (["deep/"], ["A.TXT", "b.txt", "odd[1].txt", "x.txt/e.txt"]),
        (["deep/*.txt", "er", "A*"], ["b.txt", "odd[1].txt", "x.txt/e.txt"]),
        (["{folder}/deep", "{folder}/x.txt"], ["A.TXT", "b.txt", "odd[1].txt"]),
        (["{folder.name}/b.txt"], ["A.TXT", "deep/d.txt", "deep/er/c.Txt", "odd[1].txt", "x.txt/e.txt"]),
    ],
)
def test_files_and_folders_that_a_pattern_names_are_left_out(
    folder: Path, patterns: list[str], left: list[str]
) -> None:
    patterns = [pattern.format(folder=folder) for pattern in patterns]
    assert [file.relative_to(folder).as_posix() for file in without(find_files(folder, (".txt",)), patterns)] == left


def test_a_pattern_has_to_name_something_and_to_leave_something(folder: Path) -> None:
    files = find_files(folder, (".txt",))
    for pattern in ("none.txt", folder.name, "*.md"):  # the second is above all files
        with pytest.raises(InputError, match=f"--exclude '{pattern}' names none of 6 files".replace("*", r"\*")):
            without(files, [pattern])
    with pytest.raises(InputError, match="leaves no file of 6"):
        without(files, ["b.txt", "*"])


def test_files_that_hold_the_same_are_told(folder: Path) -> None:
    assert equal_files(find_files(folder, (".txt",))) == []
    (folder / "copy.txt").write_text("b.txt")  # what b.txt holds
    (folder / "empty.txt").touch()
    (folder / "void.txt").touch()
    (told,) = equal_files(find_files(folder, (".txt",)))
    assert told.startswith(f"{folder / 'copy.txt'} holds the same as {folder / 'b.txt'}")
