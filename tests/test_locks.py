from __future__ import annotations

import json
import os
import signal

import pytest

from sscl import locks, writing


def test_the_second_is_told_who_is_there_and_a_killed_one_holds_nothing(tmp_path, hold):
    path = tmp_path / "x"
    other = hold(path)
    said = json.loads((tmp_path / ".x.lock").read_text())
    assert said["process"] == other.pid
    assert locks.in_use(path)
    (tmp_path / "link").symlink_to("x")  # the same folder by another name
    for name in ("x", "link"):
        with pytest.raises(locks.InUse) as raised, locks.held(tmp_path / name):
            pass
        assert all(str(said[key]) in str(raised.value) for key in ("host", "process", "since"))
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    assert (tmp_path / ".x.lock").exists()
    assert not locks.in_use(path)
    with locks.held(path) as locked:
        assert locked
        assert json.loads((tmp_path / ".x.lock").read_text())["process"] == os.getpid()
        with pytest.raises(locks.InUse), locks.held(path):  # another thread of this process is another, too
            pass
    assert list(tmp_path.iterdir()) == [tmp_path / "link"]


def test_unfinished_files_of_dead_processes_go_and_those_of_live_ones_stay(tmp_path, hold):
    hold(tmp_path / "x")
    live, dead, folder = (f".{name}.0123456789ab.tmp" for name in ("live", "dead", "folder"))
    (tmp_path / folder).mkdir()
    for name in (live, dead, f"{folder}/a", ".alone.0123456789ab.tmp.lock", ".foreign.tmp", "notes.txt"):
        (tmp_path / name).write_text("")
    with locks.held(tmp_path / live):
        assert not writing.is_bare(tmp_path)
        before = set(os.listdir(tmp_path))
        writing.remove_dead(tmp_path, "dead")
        assert set(os.listdir(tmp_path)) == before - {dead}
        writing.remove_dead(tmp_path)
        assert set(os.listdir(tmp_path)) == {live, f"{live}.lock", ".x.lock", ".foreign.tmp", "notes.txt"}


def test_a_folder_with_nothing_but_what_a_killed_process_left_is_bare(tmp_path):
    for name in (".a.0123456789ab.tmp", ".a.0123456789ab.tmp.lock", ".a.lock"):
        (tmp_path / name).write_text("")
    assert writing.is_bare(tmp_path)
    (tmp_path / ".b.lock").write_text("of another program")
    assert not writing.is_bare(tmp_path)


def test_where_there_are_no_locks_the_work_goes_on(tmp_path, wrap, capsys):
    def none(real, *given, **named):
        return None

    wrap(lock=none)
    with writing.holding(tmp_path / "x"), writing.replacing_folder(tmp_path / "x") as folder:
        writing.write_text(folder / "a", "new")
    assert (tmp_path / "x" / "a").read_text() == "new"
    assert os.listdir(tmp_path) == ["x"]
    assert "locks" in capsys.readouterr().out
    (tmp_path / ".x.0123456789ab.tmp").write_text("")
    writing.remove_dead(tmp_path)  # who knows?
    assert set(os.listdir(tmp_path)) == {"x", ".x.0123456789ab.tmp"}


def test_nothing_is_left_of_a_lock_in_a_new_folder(tmp_path):
    with pytest.raises(ZeroDivisionError), writing.holding(tmp_path / "a" / "b" / "x"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
