"""What a page holds, as plain containers: its sections of blocks, and the gallery of tiles."""

from __future__ import annotations

from typing import Literal, TypedDict


class Text(TypedDict):
    """Paragraphs, with an empty line between them."""

    kind: Literal["text"]
    text: str


class Lead(TypedDict):
    """The sentences that a page begins with, each with what it is about."""

    kind: Literal["lead"]
    rows: list[list[str]]


class Facts(TypedDict):
    """Names and values, one pair a line."""

    kind: Literal["facts"]
    rows: list[list[str]]


class Bullets(TypedDict):
    """A list."""

    kind: Literal["list"]
    items: list[str]


class Table(TypedDict):
    """A table; its columns from `numeric_from` on hold numbers.

    links: where the first cell of each row leads to, a relative path, "": nowhere; empty: no row has one.
    pictures: beside the first cell of each row, data URIs, "": none; empty: no row has one.
    sortable: whether its columns can be sorted by, and many rows searched.
    """

    kind: Literal["table"]
    caption: str
    header: list[str]
    rows: list[list[str]]
    numeric_from: int
    links: list[str]
    pictures: list[str]
    sortable: bool


class Figure(TypedDict):
    """A picture: either `svg`, from `sscl.plots.svg`, or `png`, a data URI. `alt` describes it in words."""

    kind: Literal["figure"]
    svg: str | None
    png: str | None
    alt: str
    caption: str


class Verdict(TypedDict):
    """The answer to a question. outcome: passed, failed, inconclusive or not assessed."""

    kind: Literal["verdict"]
    outcome: str
    title: str
    text: str


class Confusion(TypedDict):
    """A confusion matrix, rows = truth; its cells filter the gallery if that has the same classes."""

    kind: Literal["confusion"]
    classes: list[str]
    matrix: list[list[int]]
    note: str


class Code(TypedDict):
    """Lines of code, folded away under a title."""

    kind: Literal["code"]
    title: str
    text: str


Block = Text | Lead | Facts | Bullets | Table | Figure | Verdict | Confusion | Code


class Section(TypedDict):
    """A section; its id is of lower-case words and hyphens.

    hint: what is in it, in a few words. folded: whether it is closed until a reader opens it.
    """

    id: str
    title: str
    hint: str
    folded: bool
    blocks: list[Block]


class GalleryTile(TypedDict):
    """A tile of the gallery.

    id: no other tile has it. label: class, -1 = unknown. probabilities: by class; of many classes those of
    the most probable, and of the true and the predicted one. agreement: such as "6/7".
    decided: False = the classifier abstains. image: data URI. map: base64 of map_side x map_side bytes, maximum 255; ""
    without evidence. maximum: of the map before scaling. box: x0, y0, x1, y1 in pixels of the tile, half open.
    further: boxes of weaker regions.
    localises: whether the box is small enough to say a place. remark: what a reader must know of the box, or "".
    region: x, y, width, height of what the tile shows, in pixels of the image file.
    """

    id: str
    label: int
    prediction: int
    probabilities: dict[int, float]
    loss: float | None
    agreement: str | None
    votes: int | None
    group: str | None
    decided: bool | None
    image: str
    map: str
    maximum: float
    box: list[int] | None
    further: list[list[int]]
    localises: bool
    remark: str
    region: list[int] | None


class Gallery(TypedDict):
    """The gallery.

    size_px: side of the tiles. map_side: cells of a map's side. colours: base64 of 256 x 3 bytes. alpha: opacity at
    the maximum of a map. target: what the maps explain. threshold: of the boxes. notes: what a reader must know,
    first how the tiles were chosen; a sentence each. blind: whether the page opens in blind review.
    """

    classes: list[str]
    size_px: int
    map_side: int
    colours: str
    alpha: float
    target: str
    threshold: float
    notes: list[str]
    blind: bool
    tiles: list[GalleryTile]


class Content(TypedDict):
    """A page: its first section, the gallery, the other sections.

    id: 16 hexadecimal digits under which the browser keeps the worksheet. gallery: None = no gallery.
    """

    title: str
    subtitle: str
    made: str
    id: str
    sections: list[Section]
    gallery: Gallery | None
