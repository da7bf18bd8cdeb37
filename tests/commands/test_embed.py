"""sscl embed: embeddings by another road, clusters and maps, and what is refused with nothing written."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from matplotlib.figure import Figure
from PIL import Image
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from sscl.commands import embed
from sscl.evaluate import clusters
from sscl.plots import embedding as embedding_plots

WORDS = ["data.source=synthetic", "clusters=3", "per_cluster=4", "progress=false", "device=cpu"]


def call(cli: Any, root: Path, out: Path, *words: object) -> Any:
    return cli("embed", f"data.root={root}", f"out={out}", *WORDS, *words)


def refused(result: Any, *parts: str) -> None:
    assert result.code == 2, result.out
    assert len(result.err.splitlines()) == 1, result.err
    for part in parts:
        assert part in result.err


@pytest.fixture(scope="module")
def embedded(cli: Any, tiles: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder that embed of all 48 tiles wrote, and what it printed."""
    out: Path = tmp_path_factory.mktemp("embed") / "out"
    result = call(cli, tiles, out, f"encoder.weights={pretrained}")
    assert result.code == 0, result.err
    assert result.err == ""
    return out, result.out


@pytest.fixture(scope="module")
def flat(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiles without their labels."""
    root: Path = tmp_path_factory.mktemp("flat") / "flat"
    root.mkdir()
    for file in (tiles / "images").iterdir():
        (root / file.name).write_bytes(file.read_bytes())
    return root


def test_embeddings_are_those_of_timms_network(embedded: tuple[Path, str], pretrained: Path, tiles: Path) -> None:
    found = np.load(embedded[0] / "embeddings.npz")  # without pickle
    net = timm.create_model("test_resnet", num_classes=0)
    weights = torch.load(pretrained / "checkpoints/last.pt", weights_only=True)["encoder"]
    net.load_state_dict({key.removeprefix("net."): value for key, value in weights.items()})
    pixels = np.stack([np.asarray(Image.open(tiles / "images" / name)) for name in found["ids"]])
    with torch.no_grad():
        expected = net.eval()(((torch.from_numpy(pixels) / 255 - 0.5) / 0.5).permute(0, 3, 1, 2)).numpy()
    assert found["embeddings"].dtype == np.float32
    assert found["embeddings"].shape == (48, 96)
    assert np.allclose(found["embeddings"], expected, atol=1e-4 * np.abs(expected).max())
    assert found["classes"].tolist() == ["HP", "SSA"]
    assert np.bincount(found["labels"]).tolist() == [24, 24]


def test_clusters_are_the_nearest_centres_and_the_metrics_are_sklearns(
    embedded: tuple[Path, str], read_rows: Any
) -> None:
    out, printed = embedded
    found, rows, report = np.load(out / "embeddings.npz"), read_rows(out / "clusters.csv"), None
    report = json.loads((out / "embed.json").read_text())
    cluster, labels = found["cluster"], found["labels"]
    assert [row["id"] for row in rows] == found["ids"].tolist()
    assert [int(row["cluster"]) for row in rows] == cluster.tolist()
    assert [row["class"] for row in rows] == [("HP", "SSA")[label] for label in labels]

    unit = found["embeddings"] / np.linalg.norm(found["embeddings"], axis=1, keepdims=True)
    centres = np.stack([unit[cluster == number].mean(0) for number in range(3)])
    distances = np.linalg.norm(unit[:, None] - centres, axis=2)  # (N, k)
    assert (distances.argmin(1) == cluster).all()
    assert np.allclose([float(row["distance"]) for row in rows], distances.min(1), atol=1e-4)

    sizes = np.bincount(cluster)
    assert (np.diff(sizes) <= 0).all()
    assert sizes.sum() == 48
    for number, facts in enumerate(report["clusters"]):
        counts = {name: int(((cluster == number) & (labels == i)).sum()) for i, name in enumerate(("HP", "SSA"))}
        assert facts["tiles"] == sizes[number]
        assert facts["classes"] == {name: count for name, count in counts.items() if count}
    agreement = report["agreement"]
    assert agreement["adjusted_rand_index"] == pytest.approx(adjusted_rand_score(labels, cluster))
    assert agreement["normalised_mutual_information"] == pytest.approx(normalized_mutual_info_score(labels, cluster))
    assert f"adjusted Rand index {agreement['adjusted_rand_index']:.3f}" in printed


def test_the_pca_map_is_the_singular_value_decomposition(embedded: tuple[Path, str]) -> None:
    found = np.load(embedded[0] / "embeddings.npz")
    unit = found["embeddings"].astype(float)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    left, values, _ = np.linalg.svd(unit - unit.mean(0), full_matrices=False)
    assert np.allclose(np.abs(found["map_pca"]), np.abs(left[:, :2] * values[:2]), atol=1e-4)
    explained = json.loads((embedded[0] / "embed.json").read_text())["variance_explained"]
    assert explained == pytest.approx((values**2 / (values**2).sum())[:2], abs=1e-4)
    assert np.isfinite(found["map_tsne"]).all()


@pytest.fixture
def figures(wrap: Any) -> list[Figure]:
    """The figures that are saved."""
    found: list[Figure] = []
    wrap(figure=lambda save, figure, path: (found.append(figure), save(figure, path)))
    return found


def test_the_same_seed_gives_the_same_files_and_another_another(
    cli: Any, tiles: Path, pretrained: Path, tmp_path: Path, wrap: Any
) -> None:
    shown: list[Any] = []
    wrap(cluster_sheet=lambda draw, rows, **named: shown.append(np.concatenate(rows)))
    other = ["seed=1", "methods=[pca]"]  # the sheet is the clusters', whatever maps there are
    for name, words in (("first", ["seed=0"]), ("again", ["seed=0"]), ("other", other)):
        assert call(cli, tiles, tmp_path / name, f"encoder.weights={pretrained}", *words).code == 0
    for name in ("clusters.csv", "embed.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "first" / name).read_bytes(), name
    arrays = [np.load(tmp_path / name / "embeddings.npz") for name in ("first", "again")]
    assert all(np.array_equal(arrays[0][key], arrays[1][key]) for key in arrays[0].files)
    assert [np.array_equal(sheet, shown[0]) for sheet in shown] == [True, True, False]


def test_unlabelled_tiles_are_coloured_by_cluster(
    cli: Any, flat: Path, tmp_path: Path, figures: list[Figure], read_rows: Any
) -> None:
    words = ["encoder.model=timm:test_resnet", "data.source=folder", "data.size_px=32", "methods=[pca]"]
    result = call(cli, flat, tmp_path / "out", *words)
    assert result.code == 0, result.err
    assert "adjusted Rand" not in result.out
    assert json.loads((tmp_path / "out/embed.json").read_text())["agreement"] is None
    assert {row["class"] for row in read_rows(tmp_path / "out/clusters.csv")} == {""}
    legend = [text.get_text() for text in figures[0].axes[0].get_legend().get_texts()]
    assert [text.split(" (")[0] for text in legend] == ["cluster 0", "cluster 1", "cluster 2"]
    assert {path.name for path in (tmp_path / "out").glob("map_*")} == {"map_pca.png"}


def test_tsne_of_many_tiles_shows_a_sample_and_says_so(cli: Any, flat: Path, tmp_path: Path) -> None:
    components = np.random.default_rng(0).normal(size=(70, 5)).astype(np.float32)
    points = clusters.project("tsne", components, seed=0, tsne_tiles=50)
    assert points.shape == (70, 2)
    assert np.isfinite(points).all(1).sum() == 50
    assert np.array_equal(points, clusters.project("tsne", components, seed=0, tsne_tiles=50), equal_nan=True)


def test_umap_is_drawn_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """The call, not the library, whose import takes seconds."""
    seen = {}

    class UMAP:
        def __init__(self, **options: Any) -> None:
            seen.update(options)

        def fit_transform(self, points: Any) -> Any:
            return points[:, :2] * 2

    monkeypatch.setitem(sys.modules, "umap", type("umap", (), {"UMAP": UMAP}))
    components = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
    assert np.array_equal(clusters.project("umap", components, seed=7, tsne_tiles=50), components[:, :2] * 2)
    assert (seen["random_state"], seen["n_neighbors"], seen["n_jobs"]) == (7, 11, 1)


def test_clusters_are_numbered_by_size() -> None:
    unit = np.repeat(np.eye(6, dtype=np.float32), [3, 6, 1, 5, 2, 4], axis=0)
    for seed in range(5):
        assert np.bincount(clusters.k_means(unit, clusters=6, seed=seed)[0]).tolist() == [6, 5, 4, 3, 2, 1]


# --- the pictures ---


def test_a_map_shows_every_tile_once_with_colour_and_marker(tmp_path: Path, figures: list[Figure]) -> None:
    rng = np.random.default_rng(0)
    points, labels = rng.normal(size=(200, 2)), rng.integers(-1, 9, 200)
    classes = [f"tissue$_{number}" for number in range(10)]  # the last has no tile
    embedding_plots.plot_map(points, labels=labels, classes=classes, path=tmp_path / "map.png", title="a$b$")
    (axes,) = figures[0].axes
    shown = np.concatenate([np.asarray(c.get_offsets()) for c in axes.collections if len(c.get_offsets())])
    shown = shown[np.isfinite(shown).all(1)]
    assert sorted(map(tuple, shown)) == sorted(map(tuple, points))
    legend = axes.get_legend()
    texts = [text.get_text().replace("\\$", "$") for text in legend.get_texts()]
    expected = [f"{classes[number]} ({(labels == number).sum()})" for number in range(9)]
    assert texts == [*expected, f"unlabelled ({(labels == -1).sum()})"]
    looks = {
        (tuple(handle.get_facecolor()[0]), handle.get_paths()[0].vertices.tobytes()) for handle in legend.legend_handles
    }
    assert len(looks) == 10


def test_a_map_of_many_classes_names_the_largest(tmp_path: Path, figures: list[Figure]) -> None:
    labels = np.concatenate([np.arange(1000), np.repeat(np.arange(500, 520), 2), [-1]])
    points = np.random.default_rng(0).normal(size=(len(labels), 2))
    classes = [f"class {i}" for i in range(1000)]
    embedding_plots.plot_map(points, labels=labels, classes=classes, path=tmp_path / "map.png", title="")
    texts = [text.get_text() for text in figures[0].axes[0].get_legend().get_texts()]
    named = [f"class {i} (3)" for i in range(500, 520)]
    assert texts == [*named, "980 smaller ones (980)", "unlabelled (1)"]


def test_a_cluster_sheet_has_a_row_for_each_cluster(tmp_path: Path, figures: list[Figure]) -> None:
    rows = [np.full((count, 8, 8, 3), value, dtype=np.uint8) for count, value in ((3, 10), (1, 200))]
    embedding_plots.cluster_sheet(
        rows, captions=["cluster 0\n30 tiles", "cluster 1"], path=tmp_path / "c.png", title=""
    )
    (axes,) = figures[0].axes
    boxes = [(image.get_extent(), int(image.get_array()[0, 0, 0])) for image in axes.images]
    assert [value for _, value in boxes] == [10, 10, 10, 200]
    heights = {extent[2] for extent, value in boxes if value == 10}
    assert len(heights) == 1  # one row
    assert boxes[3][0][3] < heights.pop()  # the second beneath it
    assert [text.get_text() for text in axes.texts] == ["cluster 0\n30 tiles", "cluster 1"]


def test_the_caption_names_size_and_the_most_frequent_classes() -> None:
    facts = clusters.Cluster(tiles=20, classes={"adenoma": 10, "serrated": 5, "healthy": 3, "mucus": 2})
    assert embed.cluster_caption(4, facts, total=80) == (
        "cluster 4\n20 tiles (25%)\n50% adenoma\n25% serrated\n15% healthy\n10% others"
    )
    unknown = clusters.Cluster(tiles=9, classes={"unlabelled": 9})
    assert embed.cluster_caption(0, unknown, total=9) == "cluster 0\n9 tiles (100%)"


# --- refused, with nothing written ---


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["methods=[tsna]"], ["methods: must be a list with one or more of pca, tsne, umap, got [tsna]"]),
        (["clusters=1"], ["clusters: must be >= 2 and <= 100, got 1"]),
        (["clusters=49"], ["clusters: ", "got 49 for 48 tiles"]),
        (["encoder.model="], ["encoder.model: missing"]),
        (["encoder.weights=none"], ["encoder.weights: none: no such run folder or checkpoint file"]),
        (["data.root=none"], ["none"]),
        (["device=tpu"], ["device: got 'tpu'"]),
    ],
)
def test_bad_input(cli: Any, tiles: Path, tmp_path: Path, words: list[str], parts: list[str]) -> None:
    refused(call(cli, tiles, tmp_path / "out", "encoder.model=timm:test_resnet", "data.size_px=32", *words), *parts)
    assert list(tmp_path.iterdir()) == []


def test_umap_without_its_extra(cli: Any, tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    result = call(cli, tiles, tmp_path / "out", "encoder.model=timm:test_resnet", "methods=[umap]")
    refused(result, "methods: umap-learn is not installed; pip install 'sscl[umap]'")
    assert list(tmp_path.iterdir()) == []


def test_equal_tiles_have_no_map(cli: Any, tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    for number in range(5):
        Image.new("RGB", (32, 32), (200, 100, 150)).save(tmp_path / f"flat/{number}.png")
    words = ["encoder.model=timm:test_resnet", "data.source=folder", "data.size_px=32"]
    refused(call(cli, tmp_path / "flat", tmp_path / "out", *words), "gives all tiles the same embedding")
    assert not (tmp_path / "out").exists()


def test_fewer_different_tiles_than_clusters() -> None:
    unit = np.repeat(np.eye(3, dtype=np.float32), 4, axis=0)
    assert sorted(np.bincount(clusters.k_means(unit, clusters=3, seed=0)[0])) == [4, 4, 4]
    with pytest.raises(ValueError, match=r"clusters: must be <= 3 .*, got 5"):
        clusters.k_means(unit, clusters=5, seed=0)


def test_the_tiles_and_a_run_are_never_replaced(
    cli: Any, tiles: Path, pretrained: Path, tmp_path: Path, snapshot: Any, embedded: tuple[Path, str]
) -> None:
    before = snapshot(pretrained)
    encoder = f"encoder.weights={pretrained}"
    refused(call(cli, tiles, pretrained, encoder), "exists and is not empty")
    refused(call(cli, tiles, pretrained, encoder, "--overwrite"), "holds checkpoints")
    refused(call(cli, tiles, tiles.parent, encoder, "--overwrite"), "not written by sscl")
    assert snapshot(pretrained) == before
    refused(call(cli, tiles, embedded[0], encoder), "give --overwrite")
