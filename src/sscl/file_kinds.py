"""What a file is that should be something else: a pointer, a web page, text, as downloads and copies leave them."""

from __future__ import annotations

_WEB_PAGE = (b"<!doctype html", b"<html", b"<head", b"<body")
_BINARY = {
    b"PK\3\4": ("a ZIP archive", "unpack it"),
    b"\x1f\x8b": ("a gzip file", "unpack it"),
    b"7z\xbc\xaf": ("a 7z archive", "unpack it"),
    b"Rar!": ("a RAR archive", "unpack it"),
    b"\x89HDF": ("an HDF5 file, as Keras writes", "convert it"),
    b"\xd0\xcf\x11\xe0": ("an old Office file, such as .xls", "convert it"),
    b"%PDF": ("a PDF document", "save its picture as an image file"),
    b"8BPS": ("a Photoshop file", "save it as an 8-bit RGB PNG"),
    b"DDS ": ("a DDS texture", "save it as an 8-bit RGB PNG"),
}


def text_kind(start: bytes) -> tuple[str, str] | None:
    """Return what a text file is and what to do, from its first hundred bytes or so; None if it is no text."""
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "text in UTF-16", "copy or download the file again"
    try:
        shown = text.decode("utf-8", "strict" if len(start) < 60 else "ignore").strip()
    except UnicodeDecodeError:
        return None
    if not shown or any(letter < " " and not letter.isspace() for letter in shown):
        return None
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself", "run git lfs pull in its repository"
    if text[:20].lower().startswith(_WEB_PAGE):
        return "a web page (HTML)", "the download failed or needs a login; download the file again"
    if text.startswith((b"<?xml", b"<svg")):
        return "XML text, such as an SVG drawing or a server's error", "download the file again"
    kind = "JSON text" if text[:1] in (b"{", b"[") else "text"
    return f"{kind}, {' '.join(shown[:40].split())!r}", "copy or download the file again"


def binary_kind(start: bytes) -> tuple[str, str] | None:
    """Return what an archive or document is and what to do, from its first bytes; None if it is neither."""
    return next((kind for mark, kind in _BINARY.items() if start.startswith(mark)), None)
