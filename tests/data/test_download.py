"""Downloads from a server in this process: whole, cut, resumed, refused."""

from __future__ import annotations

import hashlib
import http.server
import re
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from sscl import locks
from sscl.cli import main
from sscl.config import DownloadConfig
from sscl.data.download import FILES, RemoteFile, download

CONTENT = np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8).tobytes()
MD5 = hashlib.md5(CONTENT).hexdigest()


@dataclass
class Server:
    """A server of CONTENT, and how it behaves.

    Attributes:
        url: of the file.
        ranges: whether it answers Range.
        cuts: after so many bytes each of the next answers ends.
        statuses: of the next answers, without content.
        says_length: whether it sends Content-Length.
        asked: (Range or None, bytes sent) of each answer.
    """

    url: str = ""
    content: bytes = CONTENT
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    says_length: bool = True
    asked: list[tuple[str | None, int]] = field(default_factory=list)

    def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        asked = handler.headers.get("Range")
        if self.statuses:
            self.asked.append((asked, 0))
            handler.send_error(self.statuses.pop(0))
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and self.ranges else 0  # type: ignore[index]
        if start >= len(self.content):
            self.asked.append((asked, 0))
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(self.content)}")
            handler.end_headers()
            return
        body = self.content[start:]
        handler.send_response(206 if asked and self.ranges else 200)
        if asked and self.ranges:
            handler.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        if self.says_length:
            handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        sent = body[: self.cuts.pop(0)] if self.cuts else body
        self.asked.append((asked, len(sent)))
        handler.wfile.write(sent)


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.answer(self)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        state.url = f"http://127.0.0.1:{served.server_port}/set.npz?download=1"
        thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        served.shutdown()
        thread.join()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "set.npz"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def fetch(server: Server, path: Path, **options: Any) -> bool:
    return download(server.url, path, **{"md5": MD5, "pause_s": 0, **options})


def part_of(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True)
    part = path.with_name("set.npz.part")
    part.write_bytes(content)
    return part


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.parent.iterdir()) if path.parent.exists() else []


# --- what arrives ---


@pytest.mark.parametrize("says_length", [True, False])
def test_whole(server, path, says_length):
    server.says_length = says_length
    assert fetch(server, path)
    assert path.read_bytes() == CONTENT
    assert names(path) == ["set.npz"]
    assert server.asked == [(None, len(CONTENT))]


def test_two_at_once_do_not_break_each_other(server: Server, tmp_path: Path, hold: Any) -> None:
    (tmp_path / "a.part").write_bytes(CONTENT[:9])
    other = hold(tmp_path / "a")
    with pytest.raises(locks.InUse, match=str(other.pid)):
        download(server.url, tmp_path / "a", md5=MD5)
    other.kill()
    other.wait()
    assert server.asked == []
    assert (tmp_path / "a.part").read_bytes() == CONTENT[:9]
    assert download(server.url, tmp_path / "a", md5=MD5)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_there_already(server, path):
    assert fetch(server, path)
    assert not fetch(server, path)
    assert len(server.asked) == 1


def test_a_cut_connection_goes_on_with_the_rest(server, path):
    server.cuts = [100_000, 70_000]
    assert fetch(server, path)
    assert path.read_bytes() == CONTENT
    assert server.asked == [(None, 100_000), ("bytes=100000-", 70_000), ("bytes=170000-", 130_000)]


def test_a_later_call_goes_on_with_the_rest(server, path):
    part_of(path, CONTENT[:123_456])
    assert fetch(server, path)
    assert path.read_bytes() == CONTENT
    assert server.asked == [("bytes=123456-", len(CONTENT) - 123_456)]


def test_a_part_that_is_whole_is_only_checked(server, path):
    part_of(path, CONTENT)
    assert fetch(server, path)
    assert server.asked == [(f"bytes={len(CONTENT)}-", 0)]
    assert names(path) == ["set.npz"]


def test_a_server_without_ranges_starts_again(server, path):
    server.ranges = False
    server.cuts = [100_000]
    assert fetch(server, path)
    assert path.read_bytes() == CONTENT
    assert server.asked == [(None, 100_000), ("bytes=100000-", len(CONTENT))]


def test_a_part_longer_than_the_file_starts_again(server, path):
    part_of(path, CONTENT + b"more")
    assert fetch(server, path)
    assert path.read_bytes() == CONTENT
    assert server.asked == [(f"bytes={len(CONTENT) + 4}-", 0), (None, len(CONTENT))]


def test_a_busy_server_is_asked_again(server, path):
    server.statuses = [503, 429]
    assert fetch(server, path)
    assert len(server.asked) == 3


def test_progress_makes_attempts_start_afresh(server, path):
    server.cuts = [10_000] * 12
    assert fetch(server, path)
    assert len(server.asked) == 13


def test_the_bar_counts_from_what_was_there(server, path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    part_of(path, CONTENT[:200_000])
    assert fetch(server, path, progress=True)
    shown = capsys.readouterr().err
    assert "set.npz" in shown
    assert " 67%" in shown
    assert "100%" in shown


# --- what does not ---


@pytest.mark.parametrize("started", [b"", b"x" * 50])
def test_a_wrong_checksum_leaves_nothing(server, path, started):
    if started:
        part_of(path, started)
    server.content = CONTENT if started else b"<html>please log in</html>"
    with pytest.raises(ValueError, match=rf"has md5 \w{{32}}, expected {MD5}; it was removed, try") as caught:
        fetch(server, path)
    assert "\n" not in str(caught.value)
    assert names(path) == []


def test_not_found(server, path):
    server.statuses = [404]
    with pytest.raises(ValueError, match="the server answered 404 Not Found"):
        fetch(server, path)
    assert len(server.asked) == 1
    assert not path.parent.exists()


@pytest.mark.parametrize("ranges", [True, False])
def test_a_server_that_always_cuts_is_given_up(server, path, ranges):
    server.ranges = ranges
    server.cuts = [50_000] + ([0] if ranges else [30_000, 40_000]) * 10
    with pytest.raises(
        ValueError, match=r"cannot be fetched \(the connection ended after \d+ of 300000 bytes\); .*kept"
    ):
        fetch(server, path)
    assert len(server.asked) == 4
    assert names(path) == ["set.npz.part"]
    server.cuts, server.ranges = [], True
    assert fetch(server, path)


def test_no_network(path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/set.npz"
        with pytest.raises(ValueError, match=r"cannot be fetched .*Connection refused") as caught:
            download(url, path, md5=MD5, pause_s=0)
    assert str(caught.value).startswith(f"{url}: ")
    assert str(caught.value).endswith(f"put it at {path}")
    assert not path.parent.exists()


def test_another_file_under_the_name_is_left_alone(server, path):
    path.parent.mkdir()
    path.write_bytes(b"mine")
    with pytest.raises(ValueError, match=rf"exists already, but is not the expected file \(md5 {MD5}\)"):
        fetch(server, path)
    assert path.read_bytes() == b"mine"
    assert server.asked == []


def test_a_file_where_the_folder_should_be(server, tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(ValueError, match="file: is a file"):
        fetch(server, tmp_path / "file" / "set.npz")
    assert server.asked == []


@pytest.mark.parametrize("url", ["file:///etc/hostname", "zenodo.org/a.npz", "http://"])
def test_only_http(path, url):
    with pytest.raises(ValueError, match="http:// or https://"):
        download(url, path, md5=MD5)


def test_a_full_disk_is_not_taken_for_the_network(server, path, monkeypatch):
    part = part_of(path, b"")
    part.unlink()
    part.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        fetch(server, path)
    assert len(server.asked) == 1


# --- the command ---


def test_the_names_are_those_of_the_configuration():
    assert get_args(DownloadConfig.model_fields["name"].annotation) == tuple(FILES)
    for name, remote in FILES.items():
        assert remote.url == f"https://zenodo.org/records/10519652/files/{name}.npz?download=1"
        assert re.fullmatch("[0-9a-f]{32}", remote.md5)
    assert FILES["pathmnist"].md5 == "a8b06965200029087d5bd730944a56c1"
    assert len({remote.md5 for remote in FILES.values()}) == 4


@pytest.fixture
def published(server, wrap, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setitem(FILES, "pathmnist_64", RemoteFile(server.url, MD5))
    wrap(download=lambda real, *a, **k: real(*a, **k, pause_s=0))
    return server


@pytest.mark.parametrize("word", ["pathmnist_64", "name=pathmnist_64"])
def test_the_command_takes_the_name_as_a_word(published, tmp_path, capsys, word):
    words = ["data", "download", f"out={tmp_path / 'd'}", word, "progress=false"]
    assert main(words) == 0
    assert (tmp_path / "d" / "pathmnist_64.npz").read_bytes() == CONTENT
    out = capsys.readouterr().out
    assert f"wrote {tmp_path}/d/pathmnist_64.npz (md5 {MD5}" in out
    assert f"next: sscl data inspect {tmp_path}/d/pathmnist_64.npz " in out
    assert main(words) == 0
    assert f"{tmp_path}/d/pathmnist_64.npz exists" in capsys.readouterr().out
    assert len(published.asked) == 1


def test_another_url_must_have_the_same_checksum(server, tmp_path, capsys):
    assert main(["data", "download", "pathmnist", f"url={server.url}", f"out={tmp_path}", "progress=false"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"sscl: {server.url}: ")
    assert f"has md5 {MD5}, expected a8b06965200029087d5bd730944a56c1" in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (
            ["pathmnist_46"],
            ("name: ", "got 'pathmnist_46'", "did you mean pathmnist_64?"),
        ),
        ([], ("name: missing", "name=VALUE")),
        (["pathmnist", "again"], ("argument 'again'", "KEY=VALUE")),
        (["pathmnist", "url=ftp://x/y"], ("url: got 'ftp://x/y'", "http:// or https://")),
    ],
)
def test_bad_words_are_one_line(words, parts, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["data", "download", *words]) == 2
    err = capsys.readouterr().err
    assert all(part in err for part in parts), err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
