"""Which slide a name in a table, or of a file, means."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from sscl.places import one_form, printable
from sscl.words import count, some


class SlideNames:
    """Slides by what people call them: the path below their folder, or the file name, each also without its ending.

    "a.ome.tiff" is "a" without its ending, and "a.ome" too, as TRIDENT calls it.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._meant: list[defaultdict[str, list[str]]] = [defaultdict(list) for _ in range(4)]
        for name in names:
            *above, base = name.split("/")
            bare = {stem(base), os.path.splitext(base)[0]}
            forms = ({name}, {"/".join([*above, form]) for form in bare}, {base}, bare)
            for of, spellings in zip(self._meant, forms, strict=True):
                for form in spellings:
                    of[one_form(form)].append(name)

    def meant(self, text: str, *, as_path: bool = False) -> list[str]:
        """Return the slides that a text may mean, none where it means none.

        Args:
            as_path: it has folders, perhaps others than the slide; then "a" is a.svs beside its folders, and not also
                sub/a.svs.
        """
        path = one_form(text)
        file = path.rsplit("/", 1)[-1]
        forms = (path, path, file, file) if as_path else (path, None, path, path)
        return next(
            (of[form] for of, form in zip(self._meant, forms, strict=True) if form is not None and form in of), []
        )


def file_of_each(
    meant: Iterable[tuple[Path, Sequence[str]]], *, key: str, to_do: str
) -> tuple[dict[str, Path], list[Path]]:
    """Return the file of each slide that has one, by name of the slide, and the files of none.

    Args:
        meant: files, and which slides the name of each may mean. key: the setting that gives them.
        to_do: where a name means several slides.

    Raises:
        ValueError: a file is of several slides, or a slide has two; begins with the key.
    """
    found: dict[str, Path] = {}
    others = []
    for path, slides in meant:
        shown = printable(str(path))
        if len(slides) > 1:
            named = f"{count(len(slides), 'slide')} ({some(slides)})"
            raise ValueError(f"{key}: {shown}: is the name of {named}; {to_do}")
        if not slides:
            others.append(path)
        elif found.setdefault(slides[0], path) != path:
            raise ValueError(f"{key}: {shown}: is of {slides[0]}, and so is {found[slides[0]]}; remove one")
    return found, others


def stem(base: str) -> str:
    """Return a slide's file name without its ending, also of "a.ome.tiff".

    Examples:
        >>> stem("TCGA-A6.01Z.svs"), stem("a.ome.tiff")
        ('TCGA-A6.01Z', 'a')
    """
    found = os.path.splitext(base)[0]
    return found[: -len(".ome")] if found.lower().endswith(".ome") else found
