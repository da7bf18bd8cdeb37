"""Poisoned arrays, pictures, checkpoints and cache files, and their readers."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sscl.data.decode import read_image
from sscl.data.folder import load_folder
from sscl.data.pathmnist import load_pathmnist
from sscl.models.checkpoint import load_checkpoint
from sscl.models.classifier import load_classifier
from sscl.models.torch_files import read_torch_file
from sscl.models.weights import read_trunk
from torturing import poison
from torturing.fed import Fed, strange
from torturing.poison import Random, damaged, pick
from torturing.trials import rng_of


class Arrays(Fed):
    """.npz files in MedMNIST's layout."""

    name, number = "npz", 3

    def prepare(self) -> None:
        self.members = self._members()

    def _members(self) -> dict[str, bytes]:
        """The members of a valid file."""
        rng = rng_of(0)
        arrays = {"classes": np.array(["a", "b"])}
        for part in ("train", "val", "test"):
            arrays[f"{part}_images"] = rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
            arrays[f"{part}_labels"] = np.array([[0], [1], [0], [1]])
            arrays[f"{part}_groups"] = np.array([f"{part}{i}" for i in range(4)])
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "whole.npz"
            np.savez_compressed(path, allow_pickle=False, **arrays)
            with zipfile.ZipFile(path) as archive:
                return {name: archive.read(name) for name in archive.namelist()}

    def make(self, rng: Random, folder: Path) -> Path:
        path = folder / "poisoned.npz"
        data = poison.rezipped(rng, self.members, harm=self.harm)
        path.write_bytes(damaged(rng, data, other=data) if rng.random() < 0.25 else data)
        return path

    def harm(self, rng: Random, name: str, data: bytes) -> bytes:
        """Harm a member: its header, its bytes, or what array it is."""
        kind = rng.random()
        if kind < 0.4:
            return poison.npy_header(rng, data)
        if kind < 0.6:
            return damaged(rng, data, other=data)
        out = io.BytesIO()
        try:
            array = np.load(io.BytesIO(data))
        except Exception:  # harmed before, and numpy raises whatever it meets
            return data
        if kind < 0.7:
            np.save(out, np.array([Payload(), None], dtype=object), allow_pickle=True)
        elif kind < 0.9:
            changed = (array[:1], array[:0], array[..., None], array.T, array.reshape(-1), array.repeat(3, 0))
            np.save(out, pick(rng, changed))
        else:
            types = ("f4", "i8", "u8", "c8", "U5", "S3", "M8[s]", "?")
            with contextlib.suppress(ValueError, TypeError):
                np.save(out, array.astype(pick(rng, types)))
        return out.getvalue()

    def read(self, rng: Random, path: Path) -> None:
        split = pick(rng, ("train", "validation", "test", "all"))
        load_pathmnist(path, split=split, size_px=pick(rng, (None, 32, 16)), cache_dir="cache")

    def words(self, rng: Random, path: Path) -> list[str]:
        return ["data", "audit", f"data.root={path}", "data.size_px=32", "out=out", "progress=false", "device=cpu"]


class Payload:
    """What a pickle may hold: a call."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch PWNED",)


class Images(Fed):
    """Pictures of every format that Pillow writes."""

    name, number = "images", 4

    def prepare(self) -> None:
        self.seeds = self._seeds()

    def _seeds(self) -> list[tuple[str, bytes]]:
        """Small pictures by suffix, in every format and colour mode."""
        Image.init()
        tile = Image.open(next((self.material.folder / "data" / "images").iterdir())).convert("RGB")
        found = []
        for suffix, kind in sorted(Image.EXTENSION.items()):
            if kind not in Image.SAVE or kind == "PDF":
                continue
            for mode in ("RGB", "L", "P", "RGBA", "1", "CMYK", "I;16", "F", "LA", "YCbCr"):
                if kind == "ICNS" and mode != "RGB":  # it is enlarged to 1024 px
                    continue
                out = io.BytesIO()
                try:
                    (tile.convert("L").convert(mode) if mode in ("I;16", "F") else tile.convert(mode)).save(out, kind)
                except Exception:  # most formats have few modes
                    continue
                found.append((suffix, out.getvalue()))
        for how in ("tiff_lzw", "tiff_deflate", "jpeg", "group4", "packbits"):
            out = io.BytesIO()
            (tile.convert("1") if how == "group4" else tile).save(out, "TIFF", compression=how)
            found += [(".tif", out.getvalue())] * 3
        return found

    def make(self, rng: Random, folder: Path) -> Path:
        suffix, data = pick(rng, self.seeds)
        if rng.random() < 0.2:
            suffix = pick(rng, (".png", ".jpg", ".tif", ".webp"))
        path = folder / f"poisoned{suffix}"
        if rng.random() < 0.01:
            strange(folder)
            return folder / pick(rng, ("pipe.png", "loop.png", "folder.png", "none.png"))
        path.write_bytes(damaged(rng, data, other=pick(rng, self.seeds)[1]))
        return path

    def read(self, rng: Random, path: Path) -> None:
        read_image(path, size_px=32, fit=pick(rng, ("refuse", "crop", "resize")))

    def words(self, rng: Random, path: Path) -> list[str]:
        return ["predict", str(self.runs / "fine"), str(path), "out=out", "panels=1", "progress=false", "device=cpu"]


class Checkpoints(Fed):
    """Checkpoints and files of weights."""

    name, number = "checkpoints", 5

    def prepare(self) -> None:
        self.seeds = self._seeds()

    def _seeds(self) -> list[tuple[str, bytes, Any]]:
        """Name, bytes and content of the files that runs and export wrote."""
        names = ("pre/checkpoints/last.pt", "pre/encoder.pt", "fine/checkpoints/best.pt", "export/encoder.safetensors")
        found = [self.runs / name for name in names]
        return [(path.name, path.read_bytes(), read_torch_file(path)) for path in found if path.is_file()]

    def make(self, rng: Random, folder: Path) -> Path:
        name, data, content = pick(rng, self.seeds)
        path = folder / f"poisoned{Path(name).suffix}"
        kind = rng.random()
        if kind < 0.6:
            out = io.BytesIO()
            with contextlib.suppress(OverflowError, ValueError):
                torch.save(poison.changed(rng, content, tensors=True), out, _use_new_zipfile_serialization=kind < 0.5)
            data = out.getvalue()
        elif kind < 0.63:
            out = io.BytesIO()
            torch.save({**content, "format": Payload()}, out)
            data = out.getvalue()
        elif kind < 0.8 and data[:2] == b"PK":
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                members = {name: archive.read(name) for name in archive.namelist()}
            data = poison.rezipped(rng, members, harm=lambda rng, _, data: damaged(rng, data, other=data))
        else:
            data = damaged(rng, data, other=pick(rng, self.seeds)[1])
        path.write_bytes(data)
        return path

    def read(self, rng: Random, path: Path) -> None:
        which = int(rng.integers(4))
        if which == 0:
            load_checkpoint(path, to_resume=bool(rng.random() < 0.5), tensors=bool(rng.random() < 0.5))
        elif which == 1:
            load_classifier(path, device=torch.device("cpu"))
        elif which == 2:
            read_trunk(path)
        else:
            read_torch_file(path)

    def words(self, rng: Random, path: Path) -> list[str]:
        command = pick(rng, ("eval", "export"))
        return [command, str(path), "out=out", *(["progress=false", "device=cpu"] if command == "eval" else [])]


class Cached(Fed):
    """Files of the cache. What is read must be the right tiles."""

    name, number = "cache", 8

    def make(self, rng: Random, folder: Path) -> Path:
        for i, source in enumerate(sorted((self.material.folder / "data" / "images").iterdir())[:8]):
            target = folder / "tiles" / "ab"[i % 2] / source.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(source)
        with contextlib.redirect_stdout(io.StringIO()):
            self.right = np.array(self.load(folder).images[:])  # a copy: the file is changed next
        path = pick(rng, sorted(path for path in (folder / "cache").iterdir() if path.is_file()))
        data = path.read_bytes()
        path.write_bytes(poison.npy_header(rng, data) if rng.random() < 0.3 else damaged(rng, data, other=data))
        return path

    @staticmethod
    def load(folder: Path) -> Any:
        """Return the tiles of the folder."""
        return load_folder(folder / "tiles", split="all", size_px=32, cache_dir=folder / "cache")

    def read(self, rng: Random, path: Path) -> None:
        found = np.asarray(self.load(path.parent.parent).images)
        if not np.array_equal(found, self.right):
            raise AssertionError("other pixels than those of the files, and nothing is said")

    def words(self, rng: Random, path: Path) -> list[str]:
        return ["cache", str(path.parent)]
