"""What travels to a machine without a network: wheels, and some of the tiles."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Beyond torch, torchvision and what their usual images hold; lightly and timm run without the rest of their needs.
PACKAGES = (
    *("pydantic", "pydantic-core", "annotated-types", "typing-inspection", "typing-extensions", "lightly", "timm"),
    *("openslide-python", "openslide-bin", "tifffile", "h5py"),
)
PYTHON = "3.12"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
LIMIT_MIB = 64


def pinned(packages: tuple[str, ...] = PACKAGES) -> list[str]:
    """Return the packages with their versions of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    lines = [line.partition(";")[0].strip() for line in lines if "python_version <" not in line]
    versions = dict(line.split("==") for line in lines if "==" in line)
    return [f"{name}=={versions[name]}" for name in packages]


def fetch_wheels(folder: Path) -> list[Path]:
    """Download the wheels with pip, for Python 3.12 on Linux, and return them.

    Raises:
        ValueError: pip failed; its last line.
    """
    folder.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "-d", str(folder)]
    words += ["--python-version", PYTHON, "--implementation", "cp"]
    for platform in PLATFORMS:
        words += ["--platform", platform]
    done = subprocess.run([*words, *pinned()], capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"--wheels: pip download failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return sorted(folder.glob("*.whl"))


def install_wheels(folder: Path, site: Path) -> None:
    """Unpack the wheels of a folder into `site`, which belongs on Python's path; a wheel is a zip file.

    Raises:
        ValueError: there are none.
    """
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        raise ValueError(f"--wheels: {folder} has no wheels; `scripts/gpu_check --wheels {folder}` fetches them")
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)


def pack(tiles: Path, file: Path, *, mib: float) -> tuple[int, float]:
    """Put as many tiles into a tar file as fit, the same number of each class; return how many, and MiB.

    Raises:
        ValueError: not one tile of each class fits.
    """
    folders = sorted(path for split in ("train", "test") for path in (tiles / split).iterdir() if path.is_dir())
    files = [sorted(path for path in folder.iterdir() if path.is_file()) for folder in folders]
    chosen: list[Path] = []
    size, rounds = 0.0, 0
    for i in range(max(map(len, files), default=0)):
        here = [paths[i] for paths in files if i < len(paths)]
        needed = sum(512 + -(-path.stat().st_size // 512) * 512 for path in here)  # tar's blocks
        if -(-(size + needed + 1024) // 10240) * 10240 > mib * 2**20:  # its end, and whole records
            break
        chosen, size, rounds = [*chosen, *here], size + needed, i + 1
    if not rounds:
        raise ValueError(f"--pack: {tiles}: not one tile of each class fits into {mib:g} MiB")
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w", format=tarfile.GNU_FORMAT) as archive:
        for path in chosen:
            archive.add(path, arcname=str(path.relative_to(tiles)))
    return len(chosen), file.stat().st_size / 2**20


def unpack(file: Path, folder: Path) -> Path:
    """Unpack what `pack` made and return the folder."""
    with tarfile.open(file) as archive:
        archive.extractall(folder, filter="data")
    return folder


__all__ = ["LIMIT_MIB", "fetch_wheels", "install_wheels", "pack", "pinned", "unpack"]
