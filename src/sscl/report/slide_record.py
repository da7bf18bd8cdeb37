"""What `sscl predict` writes of whole slides beside their tiles: slide.json of each, slides.json of all."""

from __future__ import annotations

from pydantic import Field

from sscl.records import Record

FILE, PAGE, THUMBNAIL, ALL = "slide.json", "slide.html", "thumbnail.jpg", "slides.json"
CAM_FILE = "cam.npz"
MADE_BY = "sscl predict"
STANDING = (
    "every tile is given one of the classes, also tissue that is of none of them (muscle, normal mucosa, folds, the "
    "edge of the glass)"
)
NO_DIAGNOSIS = "tiles are classified, one by one: this is no diagnosis of the slide"


class AppliedClassifier(Record):
    """A classifier and how it was applied: of tiles in summary.json, of slides in slides.json.

    Attributes:
        checkpoint, epoch, classes, size_px, stain: of the classifier.
        temperature: logits were divided by it. calibrated: whether it is the fitted one.
        precision: of the encoder; temperature and thresholds were fitted in the one that `notes` names if it differs.
        decide_from: confidence below which the classifier abstains; None: never. decide_from_method: where it is from.
    """

    checkpoint: str
    epoch: int
    classes: tuple[str, ...]
    size_px: int
    stain: str
    temperature: float
    calibrated: bool
    test_time_augmentation: bool
    precision: str
    decide_from: float | None
    decide_from_method: str

    @property
    def abstains(self) -> str:
        """When it abstains, in words."""
        below = "never" if self.decide_from is None else f"below confidence {self.decide_from:.3f}"
        return f"{below} ({self.decide_from_method})"


class Damage(Record):
    """A tile that could not be read: its corner, pixels of level 0, and why."""

    x: int
    y: int
    why: str


class SlideCam(Record):
    """The heatmap of a region: cam.png, and the numbers in cam.npz. x, y, width, height: pixels of level 0.

    Attributes:
        given: whether the command names the region; else it is where the class is most probable.
        explained: the score, as in "logit SSA - HP". label: the class it is of. against: those it is compared with.
            None and empty: the map is the same for every class.
        method, layer, unit: of the values; without a unit they are comparable within the region only.
        cell_um: side of a cell of a tile's map, µm: finer than that nothing is known.
        tiles: that were explained. overlap: share of its side that one shares with the next. most_over: how many lie
            over one place, at most. damaged: how many could not be read.
        mpp: µm per pixel of the map. factor: pixels of level 0 that one of its pixels spans.
        lowest, highest: of the values.
        scale_start, scale_end: values without colour, and of the strongest; the scale goes to the negative of its end
            where values do. It starts at 0, unless all values are far above it.
    """

    x: int
    y: int
    width: int
    height: int
    given: bool
    explained: str
    label: str | None
    against: tuple[str, ...]
    method: str
    layer: str
    unit: str
    cell_um: float
    tiles: int
    overlap: float
    most_over: int
    damaged: int
    mpp: float
    factor: float
    lowest: float
    highest: float
    scale_start: float
    scale_end: float


class PredictedSlide(Record):
    """slide.json: what a page needs to know beside tiles.csv. Coordinates are pixels of level 0, of the file's origin.

    Attributes:
        name: of the slide in its index; of its folder, too. path: of its file. quickhash: its identity.
        width, height, mpp, mpp_from, bounds, vendor, reader, icc: see `slides.records.Slide`. mpp is 0 where nothing
            is predicted and it is not known.
        size_px, tile_mpp: side of a tile in its own pixels, and their µm. footprint: its side in pixels of level 0.
        most_over: how many tiles lie over one place, at most; over 1 they overlap, and maps are their mean.
        tissue: share of the scanned area; None: not known.
        classes: K, in the order of the probabilities. colours: red, green, blue of each, 0-255.
        positive: the class whose probability a map of two classes shows; None of more than two.
        threshold: probability from which a place is part of a region of a class.
        checkpoint, temperature, calibrated, decide_from, decide_from_method: see `AppliedClassifier`.
        checkpoint_sha256: of its file. parameters: a digest of all that decides the slide's files, by which the same
            command keeps them.
        tiles: that were predicted. class_counts, undecided, regions: number of each class.
        damaged: tiles left out. damaged_places: where no tissue was looked for, see `SlideEntry`.
        notes: what a reader must know, a sentence each.
        cam: the heatmap of a region; None: there is none.
    """

    name: str
    path: str
    quickhash: str
    width: int
    height: int
    mpp: float
    mpp_from: str
    bounds: tuple[int, int, int, int] | None
    vendor: str
    reader: str
    icc: bool
    size_px: int
    tile_mpp: float
    footprint: float
    most_over: int
    tissue: float | None
    classes: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]
    positive: str | None
    threshold: float
    checkpoint: str
    checkpoint_sha256: str = ""
    parameters: str = ""
    temperature: float
    calibrated: bool
    decide_from: float | None
    decide_from_method: str
    tiles: int
    class_counts: dict[str, int]
    undecided: dict[str, int]
    regions: dict[str, int]
    damaged: tuple[Damage, ...]
    damaged_places: int = 0
    notes: tuple[str, ...]
    cam: SlideCam | None = None


class SlideLine(Record):
    """A slide of many. status: predicted, no tissue, failed or gone. reason: why it is not predicted.

    tiles, class_counts, undecided: that were predicted. damaged: tiles that could not be read. damaged_places: where no
    tissue was looked for.
    """

    name: str
    path: str
    status: str
    reason: str | None = None
    tiles: int = 0
    class_counts: dict[str, int] = Field(default_factory=dict)
    undecided: int = 0
    damaged: int = 0
    damaged_places: int = 0


class PredictedSlides(AppliedClassifier):
    """slides.json: all slides of a folder, and how they were predicted.

    Attributes:
        checkpoint_sha256: of its file.
        mpp: µm per pixel of the tiles. index: the index of their tiles. slides: by name.
        notes: what a reader must know, a sentence each.
    """

    checkpoint_sha256: str = ""
    mpp: float
    index: str
    slides: tuple[SlideLine, ...]
    notes: tuple[str, ...]
