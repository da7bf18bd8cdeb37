"""sscl predict on whole slides: the same answers as on tiles cut from them, in their places, and what is refused."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
import openslide
import pytest
import torch
from PIL import Image, ImageDraw
from sklearn.metrics import roc_auc_score

from damaged_levels import damaged
from sscl import api
from sscl.report.slide_folder import content_of as folder_content
from sscl.report.slide_folder import slide_folders
from sscl.report.slide_page import key_of
from sscl.slides.geojson import Region, write_regions
from sscl.slides.index import Labels, SlideEntry, digest, is_index, read_index, write_slide, write_table
from sscl.slides.open import open_slide
from sscl.slides.scaling import scaling
from sscl.slides.write import EncodedLevel, encode_level, write_levels

SIDE, MPP, SIZE = 512, 7.0, 32  # of the slide and its µm per pixel; of a tile, at 14 µm per pixel: 64 px of level 0
STEP = 64
HOSTILE = 'b"><script>alert(1)<&.svs'


@pytest.fixture(autouse=True)
def small_pictures(number: Any) -> None:
    number(slide_picture=SIDE)


@pytest.fixture(scope="module")
def level() -> EncodedLevel:
    rng = np.random.default_rng(0)
    pixels = np.full((SIDE, SIDE, 3), (240, 239, 241), np.uint8)
    tissue = rng.integers(-40, 40, (SIDE // 4, SIDE // 4, 3)).repeat(4, 0).repeat(4, 1) + (190, 120, 170)
    disc = cv2.circle(np.zeros((SIDE, SIDE), np.uint8), (250, 260), 200, 1, -1)
    return encode_level(np.where(disc[..., None] > 0, tissue, pixels).astype(np.uint8), tile_px=64)


@pytest.fixture
def slide(level: EncodedLevel, tmp_path: Path) -> Path:
    (tmp_path / "s").mkdir()
    write_levels(tmp_path / "s" / "a.svs", [level], mpp=MPP)
    return tmp_path / "s" / "a.svs"


@pytest.fixture(scope="module")
def ask(cli: Any, finetuned: Path) -> Callable[..., Any]:
    def call(*words: object, run: Path = finetuned) -> Any:
        return cli("predict", run, *words, "progress=false", "device=cpu", "batch_size=16")

    return call


def index_of(folder: Path, slide: Path, corners: list[tuple[int, int]], *, bounds: Any = None, **others: Any) -> Path:
    """An index of some tiles of a slide."""
    mpp, size = others.get("mpp", 14.0), others.get("size_px", SIZE)
    facts = open_slide(slide, name=slide.name).model_copy(update={"bounds": bounds})
    grid = np.array([(x, y, 100) for x, y in corners], np.int32)
    entry = SlideEntry(
        name=slide.name, path=str(slide), status="tiles", reason=None, mpp=mpp, size_px=size, slide=facts,
        scaling=scaling(facts, mpp=mpp, size_px=size), tissue=0.5, tiles=len(grid), grid=digest(grid), parameters="x",
    )  # fmt: skip
    write_slide(folder, entry, grid=grid, preview=None)
    (folder / "env.json").write_text(json.dumps({"sscl": "0"}))
    (folder / "config.yaml").write_text(f"mpp: {mpp}\nsize_px: {size}\n")
    write_table(folder, [entry], {slide.name: Labels()})
    return folder


def features(path: Path) -> list[Any]:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return list(json.loads(data)["features"])


def test_the_probabilities_are_those_of_tiles_cut_from_the_slide(
    ask: Any, cli: Any, finetuned: Path, slide: Path, read_rows: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = ask(slide.parent, f"out={out}")
    assert result.code == 0, result.err
    rows = read_rows(out / "a.svs" / "tiles.csv")
    places = [(int(row["x"]), int(row["y"])) for row in rows]
    index = read_index(out / "index")
    assert (index.mpp, index.size_px) == (14.0, SIZE)  # the classifier's own
    assert [tuple(corner) for corner in index.grid(0)[:, :2].tolist()] == places
    assert len(places) > 20
    with openslide.OpenSlide(slide) as opened:
        cut = [np.asarray(opened.read_region(at, 0, (STEP, STEP)).convert("RGB")) for at in places]
    small = [cv2.resize(tile, (SIZE, SIZE), interpolation=cv2.INTER_AREA) for tile in cut]
    theirs = api.load(finetuned, device="cpu").predict(np.stack(small))
    ours = np.array([[float(row[f"probability_{name}"]) for name in theirs.classes] for row in rows])
    assert np.allclose(ours, theirs.probabilities, atol=2e-5)
    assert [row["prediction"] for row in rows] == list(theirs.labels)
    assert [row["decided"] == "yes" for row in rows] == theirs.decided.tolist()
    tiles = features(out / "a.svs" / "tiles.geojson.gz")
    assert [tuple(one["geometry"]["coordinates"][0][0]) for one in tiles] == places
    for one, row in zip(tiles, rows, strict=True):  # undecided tiles have no class
        assert ("classification" in one["properties"]) == (row["decided"] == "yes")
        assert one["properties"]["measurements"]["probability SSA"] == pytest.approx(
            float(row["probability_SSA"]), abs=6e-5
        )
    assert f"{out}/index" in cli.evaluate(finetuned, f"data.root={out}", f"out={tmp_path / 'eval'}").err
    kept = json.loads((out / "a.svs" / "slide.json").read_text())
    assert (kept["footprint"], kept["tiles"], kept["most_over"]) == (STEP, len(rows), 1)
    assert any("of none of them" in note for note in kept["notes"])
    (line,) = read_rows(out / "slides.csv")
    assert (line["slide"], line["status"], int(line["tiles"])) == ("a.svs", "predicted", len(rows))
    (predicted,) = slide_folders(out)  # a worksheet of slide.html is one of `sscl slides view` too
    assert f'"id":"{key_of(folder_content(predicted))}"' in (out / "a.svs" / "slide.html").read_text()
    text = b"".join(path.read_bytes() for path in out.rglob("*") if path.suffix in (".json", ".csv", ".geojson"))
    assert not {name for name in (b"ScanScope", b"aperio.App") if name in text}  # T29


def test_the_probabilities_are_those_of_eval(
    ask: Any, cli: Any, finetuned: Path, slide: Path, read_rows: Any, tmp_path: Path
) -> None:
    """The same tiles, once as a labelled set for eval and once as a slide: the same numbers, and the same AUROC."""
    index = index_of(tmp_path / "index", slide, [(x * STEP, y * STEP) for y in range(2, 6) for x in range(2, 6)])
    border = 4 * STEP + 24  # of the tiles that it crosses more is SSA
    drawn = [
        Region(name, (((np.array([[x0, 0], [x1, 0], [x1, SIDE], [x0, SIDE], [x0, 0]])),),))
        for name, x0, x1 in (("HP", 0, border), ("SSA", border, SIDE))
    ]
    (tmp_path / "areas").mkdir()
    write_regions(tmp_path / "areas" / "a.geojson", "a.svs", drawn, colours={"HP": (1, 2, 3), "SSA": (3, 2, 1)})
    data = [f"data.root={index}", "data.source=slides", f"data.annotations={tmp_path / 'areas'}", "data.keep=slides"]
    result = cli.evaluate(finetuned, *data, f"out={tmp_path / 'eval'}", "batch_size=16")
    assert result.code == 0, result.err
    assert ask(index, f"out={tmp_path / 'out'}").code == 0
    labelled = read_rows(tmp_path / "eval" / "predictions.csv")
    tiles = {f"a.svs/{row['x']}_{row['y']}": row for row in read_rows(tmp_path / "out" / "a.svs" / "tiles.csv")}
    assert {row["id"] for row in labelled} == tiles.keys()
    ours = np.array([float(tiles[row["id"]]["probability_SSA"]) for row in labelled])
    assert np.allclose(ours, [float(row["probability_SSA"]) for row in labelled], rtol=0, atol=1e-5)
    truth = np.array([int(row["id"].split("/")[1].split("_")[0]) >= 4 * STEP for row in labelled])
    assert truth.tolist() == [row["label"] == "SSA" for row in labelled]
    metrics = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert roc_auc_score(truth, ours) == pytest.approx(metrics["metrics"]["auroc"], abs=1e-4)


def test_a_place_is_the_same_in_all_files(ask: Any, slide: Path, read_rows: Any, number: Any, tmp_path: Path) -> None:
    """T8, T9: one tile off all axes; GeoJSON counts from the scanned area's corner, the others from the file's."""
    number(slide_picture=1600)
    at = (137 + 3 * STEP, 91 + STEP)
    index = index_of(tmp_path / "index", slide, [at], bounds=(137, 91, 360, 400))
    assert ask(index, f"out={tmp_path / 'out'}", "abstain=0").code == 0
    folder = tmp_path / "out" / "a.svs"
    (row,) = read_rows(folder / "tiles.csv")
    assert (int(row["x"]), int(row["y"])) == at
    (tile,), (region,) = features(folder / "tiles.geojson.gz"), features(folder / "regions.geojson")
    corners = np.array(tile["geometry"]["coordinates"][0])
    assert (corners.min(0).tolist(), corners.max(0).tolist()) == ([3 * STEP, STEP], [4 * STEP, 2 * STEP])
    assert np.array_equal(corners, np.array(region["geometry"]["coordinates"][0]))
    area = region["properties"]["measurements"]["area mm²"]
    assert area == pytest.approx((STEP * MPP / 1000) ** 2, rel=1e-6)  # regions of small tiles are below 0.001
    picture = np.asarray(Image.open(folder / "heatmap.png"), np.int16)[:1600, :1600]
    scale = 1600 / SIDE
    with openslide.OpenSlide(slide) as opened:
        plain = np.asarray(opened.read_region((0, 0), 0, (SIDE, SIDE)).convert("RGB"))
    under = cv2.resize(plain, (1600, 1600), interpolation=cv2.INTER_CUBIC)
    rows, columns = np.nonzero(np.abs(picture - under).max(2) > 12)
    found = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / scale
    assert np.abs(found - [*at, at[0] + STEP, at[1] + STEP]).max() <= 1


def test_damaged_tiles_and_slides_are_told_and_the_rest_is_predicted(
    ask: Any, cli: Any, level: EncodedLevel, slide: Path, read_rows: Any, tmp_path: Path
) -> None:
    """T16: the neighbours of a damaged tile are as they were. T31: a name that is HTML. T37: tiles that overlap."""
    corners = [(x * STEP, y * STEP) for y in (3, 4) for x in range(2, 6)]
    write_levels(slide.with_name("b.svs"), [damaged(level, 3, 3)], mpp=MPP)
    one, other = (index_of(tmp_path / name, slide.with_name(name), corners) for name in ("a.svs", "b.svs"))
    assert ask(one, f"out={tmp_path / 'one'}").code == 0
    result = ask(other, f"out={tmp_path / 'other'}")
    assert result.code == 3
    assert "b.svs: 1 damaged tile left out" in result.err
    kept = json.loads((tmp_path / "other" / "b.svs" / "slide.json").read_text())
    assert [(bad["x"], bad["y"]) for bad in kept["damaged"]] == [(3 * STEP, 3 * STEP)]
    whole, rest = (
        {(row["x"], row["y"]): row["probability_SSA"] for row in read_rows(path)}
        for path in (tmp_path / "one" / "a.svs" / "tiles.csv", tmp_path / "other" / "b.svs" / "tiles.csv")
    )
    assert whole.keys() - rest.keys() == {(str(3 * STEP), str(3 * STEP))}
    assert all(float(rest[at]) == pytest.approx(float(whole[at]), abs=1e-5) for at in rest)
    slide.with_name("c.svs").write_text("<html>no slide</html>")
    slide.with_name("b.svs").rename(slide.with_name(HOSTILE))
    result = ask(slide.parent, f"out={tmp_path / 'all'}", "overlap=0.5")
    assert result.code == 3
    assert [line.split(": ")[1] for line in result.err.splitlines()] == [HOSTILE, "c.svs"]
    bad = {row["slide"]: (row["damaged"], row["damaged_places"]) for row in read_rows(tmp_path / "all" / "slides.csv")}
    assert bad[HOSTILE] == ("8", "1")  # its tissue was not looked for there, so that some tiles are missing besides
    assert (tmp_path / "all" / "a.svs" / "slide.html").read_text().lower().startswith("<!doctype html>")
    (tmp_path / "further").mkdir()
    (tmp_path / "further" / "link").symlink_to(tmp_path / "all")  # as scratch folders are
    assert cli("report", tmp_path / "further" / "link").code == 0
    page = (tmp_path / "all" / "report.html").read_text()
    assert all(text in page for text in ('href="./a.svs/slide.html"', f'href="./{quote(HOSTILE)}/slide.html"', "c.svs"))
    assert "<script>alert" not in page
    kept = json.loads((tmp_path / "all" / "a.svs" / "slide.json").read_text())
    assert (kept["most_over"], kept["footprint"]) == (4, STEP)
    sums, over = np.zeros((SIDE, SIDE)), np.zeros((SIDE, SIDE))  # pixel by pixel, the mean of the tiles over each
    for row in read_rows(tmp_path / "all" / "a.svs" / "tiles.csv"):
        part = np.s_[int(row["y"]) : int(row["y"]) + STEP, int(row["x"]) : int(row["x"]) + STEP]
        sums[part] += float(row["probability_SSA"])
        over[part] += 1
    assert over.max() == 4
    regions = features(tmp_path / "all" / "a.svs" / "regions.geojson")
    for name, mean in (("SSA", sums), ("HP", over - sums)):
        found = np.zeros((SIDE, SIDE), np.uint8)
        for one in regions:
            if one["properties"]["classification"]["name"] == name:
                shape = one["geometry"]
                for polygon in shape["coordinates"] if shape["type"] == "MultiPolygon" else [shape["coordinates"]]:
                    for ring, value in zip(polygon, (1, *(0,) * len(polygon)), strict=False):
                        mask = Image.new("1", (SIDE, SIDE))
                        ImageDraw.Draw(mask).polygon([(x - 0.5, y - 0.5) for x, y in ring], fill=1)
                        found[np.asarray(mask)] = value
        assert (found != (mean >= 0.5 * np.maximum(over, 1))).mean() < 0.005, name  # but for the pixels of borders
    table = {row["slide"]: row for row in read_rows(tmp_path / "all" / "slides.csv")}
    assert [table[name]["status"] for name in ("a.svs", HOSTILE, "c.svs")] == ["predicted", "predicted", "failed"]
    assert table["c.svs"]["reason"]


def test_what_cannot_be_predicted_is_one_line(
    ask: Any, finetuned: Path, slide: Path, tiles: Path, tmp_path: Path
) -> None:
    """T4, and tiles at another scale than the classifier's: refused unless told."""
    out = tmp_path / "out"
    content = torch.load(finetuned / "checkpoints" / "best.pt", weights_only=True)
    old = tmp_path / "old.pt"
    torch.save({**content, "mpp": None, "mpp_range": ()}, old)
    corners = [(192, 192)]
    half = index_of(tmp_path / "half", slide, corners, mpp=7.0)
    large = index_of(tmp_path / "large", slide, corners, size_px=48)
    other = index_of(tmp_path / "other", slide, corners)
    write_levels(tmp_path / "none.svs", [encode_level(np.full((SIDE, SIDE, 3), 200, np.uint8), tile_px=64)], mpp=None)
    for words, run, told in (
        ((slide,), old, "mpp=0.5"),
        ((half,), finetuned, "mpp=7 takes"),
        ((half, "mpp=28"), finetuned, "has tiles of 7"),
        ((large,), finetuned, "size_px=32"),
        ((other, "overlap=0.5"), finetuned, "overlap: "),
        ((other, slide), finetuned, "give it alone"),
        ((slide, tiles / "images"), finetuned, "paths: "),
        ((slide, tmp_path / "absent.svs"), finetuned, "absent.svs"),
        ((slide.parent, f"out={slide.parent / 'out'}"), finetuned, "lies in"),
        ((slide, "panels=true"), finetuned, "panels: "),
        ((slide, f"slides_root={tmp_path}"), finetuned, "slides_root: "),
        ((tiles / "images", "overlap=0.5"), finetuned, "overlap: "),
        ((tiles / "images", "blind=true"), finetuned, "blind: "),
        ((tmp_path / "none.svs",), finetuned, "slide_mpp=0.25"),
    ):
        result = ask(*words, *(() if "out=" in str(words[-1]) else (f"out={out}",)), run=run)
        assert (result.code, result.err.count("\n")) == (2, 1), result.err
        assert told in result.err
        assert not out.exists()
    result = ask(half, f"out={out}", "mpp=7")
    assert (result.code, "over 5% apart" in " ".join(result.out.split())) == (0, True), result.err


def test_slides_that_moved_are_found_again(ask: Any, slide: Path, read_rows: Any, tmp_path: Path) -> None:
    index = index_of(tmp_path / "index", slide, [(192, 192)])
    slide.parent.rename(tmp_path / "moved")
    result = ask(index, f"out={tmp_path / 'out'}")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "slides_root=FOLDER" in result.err
    assert ask(index, f"out={tmp_path / 'out'}", f"slides_root={tmp_path / 'moved'}").code == 0
    (tmp_path / "moved").rename(tmp_path / "again")
    result = ask(index, f"out={tmp_path / 'out'}", f"slides_root={tmp_path / 'again'}")
    assert "kept as they were: 1 slide" in result.out
    (row,), kept = read_rows(tmp_path / "out" / "slides.csv"), slide_folders(tmp_path / "out")[0].record
    assert row["path"] == kept.path == str(tmp_path / "again" / "a.svs")


def content_of(folder: Path) -> dict[str, bytes]:
    """All files but env.json, which says when."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "env.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_killed_command_goes_on(ask: Any, cli: Any, tmp_path: Path) -> None:
    """Killed in the first slide, in the second, before the end: whole slides are kept, and the files are the same."""
    slides, out = tmp_path / "s", tmp_path / "out"
    disc = cv2.circle(np.full((128, 128, 3), (240, 239, 241), np.uint8), (64, 64), 56, (190, 120, 170), -1)
    for name in ("a.svs", "slides/b.svs"):
        (slides / name).parent.mkdir(parents=True, exist_ok=True)
        write_levels(slides / name, [encode_level(disc, tile_px=64)], mpp=MPP)

    def predict() -> Any:
        return ask(slides, f"out={out}")

    def kill_before(name: str, *, seen: int = 0) -> None:
        """Run it in a child, which is killed before a file of this name takes its place, after so many others."""
        child = os.fork()
        if child:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
            return

        def look(event: str, given: tuple[Any, ...]) -> None:
            nonlocal seen
            if event == "os.rename" and Path(str(given[1])).name == name:
                seen -= 1
                if seen < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(look)
        predict()
        os._exit(1)

    assert predict().code == 0
    expected = content_of(out)
    shutil.rmtree(out)
    kill_before("heatmap.png")
    assert not any(path.name == "slide.json" for path in out.rglob("*/a.svs/*"))
    kill_before("tiles.csv", seen=1)
    whole = {path: path.stat().st_mtime_ns for path in (out / "a.svs").iterdir()}
    kill_before("slides.json")
    assert not (out / "slides.json").exists()
    assert "goes on with it" in cli("report", out).err
    result = predict()
    assert result.code == 0, result.err
    assert not is_index(out)  # a folder named slides is one of an index
    assert "kept as they were: 2 slides; predicted now: 0" in result.out
    assert {path: path.stat().st_mtime_ns for path in (out / "a.svs").iterdir()} == whole
    assert content_of(out) == expected
    assert {path.name for path in tmp_path.iterdir()} == {"s", "out"}
    os.utime(slides / "a.svs", (1, 1))  # perhaps of other pixels
    (slides / "slides" / "b.svs").unlink()
    result = predict()
    assert "kept as they were: 0 slides; predicted now: 1" in result.out
    assert (out / "slides" / "b.svs" / "slide.html").is_file()
    assert "slides/b.svs" in json.loads((out / "slides.json").read_text())["notes"][-1]


def test_other_results_stay(ask: Any, finetuned: Path, slide: Path, tiles: Path, tmp_path: Path) -> None:
    """Of other settings, of the run trained again, of tiles, of another command; with --overwrite they go."""
    run, out = shutil.copytree(finetuned, tmp_path / "run"), tmp_path / "out"
    of_tiles, foreign = tmp_path / "tiles", tmp_path / "foreign"
    assert ask(slide, f"out={out}", run=run).code == 0
    assert ask(tiles / "images", f"out={of_tiles}", run=run).code == 0
    foreign.mkdir()
    (foreign / "mine.txt").touch()
    before = content_of(tmp_path)
    content = torch.load(run / "checkpoints" / "best.pt", weights_only=True)
    for words, told in (
        ((slide, f"out={out}", "threshold=0.6"), "threshold=0.5"),
        ((slide.parent, f"out={out}"), "paths="),
        ((slide, f"out={of_tiles}"), "--overwrite"),
        ((slide, f"out={foreign}"), "not empty"),
        ((slide, f"out={foreign}", "--overwrite"), "not written by sscl"),
        ((slide, f"out={slide}"), "which is to be read"),
        ((slide, f"out={slide.parent}"), "which is to be read"),
    ):
        result = ask(*words, run=run)
        assert (result.code, result.err.count("\n")) == (2, 1), result.err
        assert told in result.err
        assert content_of(tmp_path) == before
    torch.save({**content, "epoch": 7}, run / "checkpoints" / "best.pt")
    result = ask(slide, f"out={out}", run=run)
    assert (result.code, result.err.count("\n")) == (2, 1), result.err
    assert "trained again" in result.err
    assert '"blind":false' in (out / "a.svs" / "slide.html").read_text()
    assert ask(slide, f"out={out}", "threshold=0.6", "blind=true", "--overwrite", run=run).code == 0
    assert '"blind":true' in (out / "a.svs" / "slide.html").read_text()
    assert json.loads((out / "a.svs" / "slide.json").read_text())["threshold"] == 0.6
