"""Files and folders beside their places: whole or not there, and nobody else's touched."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from e4t import writing
from e4t.errors import CheckpointError, DataError
from e4t.writing import new_files, new_folder, replaceable, require_room, save_anew, slug, unfinished


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(folder: Path, own: tuple[str, ...] = ("mine",), text: str = "new") -> None:
    with new_folder(folder, own) as new:
        (new / "mine").write_text(text)


@pytest.mark.parametrize("error", [OSError("no space left"), SafetensorError("no space left")])
def test_what_cannot_be_written_is_one_sentence_and_leaves_nothing(tmp_path: Path, error: Exception) -> None:
    def fail() -> None:
        with new_files([tmp_path / "old.txt", tmp_path / "deep" / "other.txt"], DataError) as (beside, _):
            beside.write_text("half")
            raise error

    (tmp_path / "old.txt").write_text("old")
    with pytest.raises(DataError, match=r"old.txt' cannot be written \(no space left\); what was there before is"):
        fail()
    write(tmp_path / "folder", text="old")
    with pytest.raises(CheckpointError, match="folder' cannot be written"), new_folder(tmp_path / "folder", ()):
        raise error
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "folder", ()):
        raise KeyboardInterrupt
    assert names(tmp_path) == ["deep", "folder", "old.txt"]
    assert names(tmp_path / "deep") == []
    assert (tmp_path / "folder" / "mine").read_text() == "old"


def test_a_file_that_is_saved_anew_is_whole_or_not_there_and_takes_no_other_s_place(tmp_path: Path) -> None:
    path, seen = tmp_path / "anna.png", []

    def save(beside: Path) -> None:
        seen.append(names(tmp_path))
        beside.write_text("whole")
        if len(seen) > 3:
            raise OSError("no space left")

    assert [save_anew(save, path).name for _ in range(3)] == ["anna.png", "anna-2.png", "anna-3.png"]
    assert seen == [[], ["anna.png"], ["anna-2.png", "anna.png"]]
    assert {file.read_text() for file in tmp_path.iterdir()} == {"whole"}
    with pytest.raises(CheckpointError, match=r"anna.png' cannot be written \(no space left\)"):
        save_anew(save, path)
    assert len(names(tmp_path)) == 3


def test_files_of_others_stay_in_a_folder_that_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    write(folder)
    (folder / "notes.txt").write_text("dear")
    (folder / "pictures").mkdir()
    (folder / "pictures" / "a.png").write_bytes(b"dear")
    (folder / "former").write_text("of ours")
    write(folder, ("mine", "former"), "newer")
    assert names(folder) == ["mine", "notes.txt", "pictures"]
    assert (folder / "mine").read_text() == "newer"
    assert (folder / "pictures" / "a.png").read_bytes() == b"dear"
    assert names(tmp_path) == ["folder"]


def test_what_killed_processes_left_is_in_nobodys_way(tmp_path: Path) -> None:
    write(tmp_path / "folder")
    for ending in ("old", "new"):
        shutil.copytree(tmp_path / "folder", tmp_path / f".folder.{os.getpid()}.{ending}")
    write(tmp_path / "folder", text="newer")
    assert (tmp_path / "folder" / "mine").read_text() == "newer"


def test_an_interruption_between_two_renames_gives_the_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "folder", text="old")
    rename, done = Path.rename, []

    def interrupted(self: Path, target: Path) -> Path:
        done.append(target)
        if len(done) == 2:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "folder")
    assert names(tmp_path) == ["folder"]
    assert (tmp_path / "folder" / "mine").read_text() == "old"


KILLED = """
import os, signal, sys
from pathlib import Path
from e4t.writing import new_folder

rename, left = Path.rename, int(sys.argv[2])

def counted(self, target):
    global left
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    return rename(self, target)

Path.rename = counted
with new_folder(Path(sys.argv[1]), ("mine",)) as new:
    (new / "mine").write_text("half")
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs a signal that nothing can catch")
@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_kill_in_the_middle_of_an_exchange_loses_nothing(tmp_path: Path, renames: int) -> None:
    folder = tmp_path / "folder"
    write(folder, text="old")
    (folder / "notes.txt").write_text("dear")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(folder), str(renames)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert names(tmp_path) != ["folder"]
    write(folder)
    assert names(tmp_path) == ["folder"]
    assert names(folder) == ["mine", "notes.txt"]
    assert (folder / "mine").read_text() == "new"


def test_where_nothing_can_be_written_is_said_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match="file' is a file"):
        require_room(tmp_path / "file" / "deep" / "out")
    require_room(tmp_path / "new" / "deep")
    assert names(tmp_path) == ["file"]


def test_unfinished_files_are_told_from_others(tmp_path: Path) -> None:
    with new_files([tmp_path / "a.json"]) as (beside,):
        beside.write_text("half")
        for name in (".mine.new", "b.0123abcd.new", ".a.json"):
            (tmp_path / name).write_text("mine")
        assert unfinished(tmp_path) == [beside]


def test_folders_that_nothing_can_take_the_place_of_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "below")
    for place in (".", "..", "/", tmp_path / "here"):
        with pytest.raises(CheckpointError, match=r"is the folder this runs in, or a whole disk.*such as"):
            replaceable(Path(place))
    (tmp_path / "link").symlink_to(tmp_path / "far")
    assert replaceable(tmp_path / "link") == tmp_path / "far"
    assert replaceable(Path("new")) == tmp_path / "here" / "below" / "new"
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path / "far") == ["mine"]


def test_the_disk_holds_what_takes_a_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file, and its folder's names, before the rename; the names around it after."""
    done: list[str] = []
    places = {}

    def fsync(descriptor: int) -> None:
        done.append(places.get(os.fstat(descriptor).st_ino, "?"))

    def rename(self: Path, target: Path) -> None:
        done.append("rename")
        os.rename(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", rename)
    with new_folder(tmp_path / "folder", ()) as new:
        (new / "a").write_text("a")
        places |= {path.stat().st_ino: path.name for path in (tmp_path, new / "a")}
        places[new.stat().st_ino] = "folder"
    assert done == ["a", "folder", "rename", tmp_path.name]
    done.clear()
    monkeypatch.setattr(writing.os, "replace", lambda *_: done.append("replace"))
    with new_files([tmp_path / "b"]) as (beside,):
        beside.write_text("b")
        places[beside.stat().st_ino] = "b"
    assert done == ["b", "replace", tmp_path.name]


@pytest.mark.skipif(os.name != "posix", reason="files have other permissions there")
def test_others_may_read_weights_as_any_file(tmp_path: Path) -> None:
    """So that a web UI of another user can: safetensors writes for the owner alone."""
    (tmp_path / "plain").touch()
    with new_files([tmp_path / "word.safetensors"]) as (beside,):
        save_file({"S*": torch.ones(1)}, beside)
    with new_folder(tmp_path / "concept", ()) as folder:
        (folder / "deep").mkdir()
        save_file({"S*": torch.ones(1)}, folder / "deep" / "word.safetensors")
    written = [tmp_path / "word.safetensors", tmp_path / "concept" / "deep" / "word.safetensors"]
    assert {path.stat().st_mode for path in written} == {(tmp_path / "plain").stat().st_mode}
    assert names(tmp_path) == ["concept", "plain", "word.safetensors"]


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("a photo of S*", "a-photo-of-s"),
        ("../../x", "x"),
        ("**", ""),
        ("x" * 300, "x" * 60),
        ("é" * 300, "é" * 30),
    ],
)
def test_prompts_make_safe_file_names(prompt: str, name: str) -> None:
    assert slug(prompt) == name
