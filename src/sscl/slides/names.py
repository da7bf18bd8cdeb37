"""Which slide a name in a table, or of a file, means."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence

from sscl.places import one_form


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
            for of, some in zip(self._meant, forms, strict=True):
                for form in some:
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


def stem(base: str) -> str:
    """Return a slide's file name without its ending, also of "a.ome.tiff".

    Examples:
        >>> stem("TCGA-A6.01Z.svs"), stem("a.ome.tiff")
        ('TCGA-A6.01Z', 'a')
    """
    found = os.path.splitext(base)[0]
    return found[: -len(".ome")] if found.lower().endswith(".ome") else found
