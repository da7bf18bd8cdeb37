"""The configs that come with sscl, by name: `demo/pretrain` is `configs/demo/pretrain.yaml` of the package."""

from __future__ import annotations

from pathlib import Path

from sscl.places import expanded
from sscl.words import closest, short

FOLDER = Path(__file__).resolve().parents[1] / "configs"


def names() -> list[str]:
    """Return the name of every shipped config, sorted."""
    return sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.yaml"))


def find(given: str | Path, *, key: str = "--config") -> Path:
    """Return the YAML file that a path or a name stands for; a file that exists wins over a shipped config.

    Args:
        given: a path to a file, or the name of a shipped config, with or without .yaml.
        key: where it was given, for the message.

    Raises:
        FileNotFoundError: neither; one line with the nearest name.
    """
    try:
        path = Path(expanded(str(given)))
    except ValueError as error:
        raise ValueError(f"{key}: {short(str(error), most=500)}") from None
    return path if path.is_file() else by_name(str(given), key=key)


def by_name(name: str, *, key: str) -> Path:
    """Return the file of a shipped config.

    Raises:
        FileNotFoundError: none has that name; one line with the nearest.
    """
    known = names()
    if name.removesuffix(".yaml") in known:
        return FOLDER / f"{name.removesuffix('.yaml')}.yaml"
    near = closest(name.removesuffix(".yaml"), known, cutoff=0.7)
    hint = (
        f"`sscl configs` lists the shipped ones; files are looked for in {Path.cwd()}"
        if near is None
        else f"did you mean {near}?"
    )
    raise FileNotFoundError(f"{key}: no such file or shipped config: {short(name, most=500)}; {hint}")


def title(name: str) -> str:
    """Return the first comment line of a shipped config: what it is for."""
    return (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").split("\n", 1)[0].removeprefix("#").strip()
