"""sscl embed: embeddings of a tile set, 2D maps of them, and k-means clusters with a contact sheet.

Maps and clusters use the embeddings at unit length, as contrastive pretraining compares them; embeddings.npz holds them
unscaled. N tiles, C features, k clusters.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.manifold import TSNE
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from sscl import run, writing
from sscl.config import DataConfig, EmbedConfig, EncoderConfig, plain
from sscl.data.load import all_rows, describe_tiles, load_tiles
from sscl.data.tiles import Tiles, place_store
from sscl.device import describe_device, pick_device, pick_precision
from sscl.models import features
from sscl.models.start import frozen_encoder
from sscl.plots import embedding as embedding_plots
from sscl.records import Record, write_record
from sscl.run import check_inputs_outside

FloatArray = NDArray[np.float32]
NAMES = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}
COMPONENTS = 50  # of the PCA that t-SNE and UMAP start from, as van der Maaten & Hinton did


class Preprocessing(Record):
    """Side of the tiles, and channel means and standard deviations of pixels in 0-1."""

    size_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Cluster(Record):
    """A cluster's size and its tiles of each class, most frequent first; `unlabelled` counts as one."""

    tiles: int
    classes: dict[str, int]


class Agreement(Record):
    """How the clusters agree with the classes of the labelled tiles."""

    tiles: int
    adjusted_rand_index: float
    normalised_mutual_information: float


class EmbedReport(Record):
    """embed.json: the encoder, the tiles, the clusters (largest first), and how these agree with the classes.

    Attributes:
        encoder: as configured. encoder_name, encoder_fingerprint, num_features: the one that was used.
        preprocessing: of its tiles. data, data_fingerprint, split, tiles, class_counts: of the tiles.
        variance_explained: fractions on the first two principal components.
        agreement: None below two classes.
    """

    encoder: EncoderConfig
    encoder_name: str
    encoder_fingerprint: str
    num_features: int
    preprocessing: Preprocessing
    data: DataConfig
    data_fingerprint: str
    split: str
    tiles: int
    class_counts: dict[str, int]
    variance_explained: tuple[float, ...]
    clusters: tuple[Cluster, ...]
    agreement: Agreement | None


def main(config: EmbedConfig, *, overwrite: bool = False) -> None:
    """Embed a split and write embeddings.npz, the maps, clusters.png, clusters.csv and embed.json.

    Raises:
        ValueError, FileNotFoundError: bad input, in one line; then nothing is written.
    """
    device = pick_device(config.device)
    precision = pick_precision(config.precision, device)
    if "umap" in config.methods:
        check_umap()
    out = Path(config.out)
    run.check_run_folder(out, overwrite=overwrite)
    check_inputs_outside(out, {"data.root": config.data.root, "encoder.weights": config.encoder.weights})
    start = frozen_encoder(config.encoder)
    size_px = start.size_px or config.data.size_px
    data = config.data.model_copy(update={"size_px": size_px})
    tiles = load_tiles(data, split=config.split, progress=config.progress)
    if len(tiles) < max(4, config.clusters):
        raise ValueError(
            f"clusters: must be at most the number of tiles (4 or more), got {config.clusters} for {len(tiles)} tiles"
        )
    print(f"device: {describe_device(device)}, precision {precision}")
    print(describe_tiles(data, tiles, split=config.split))

    embeddings = features.outputs(
        start.encoder.to(device),
        place_store(tiles.images, device=device, budget_gb=data.device_budget_gb),
        all_rows(tiles),
        mean=torch.tensor(start.mean, device=device),
        std=torch.tensor(start.std, device=device),
        batch_size=config.batch_size,
        precision=precision,
        progress="embed" if config.progress else None,
    ).numpy()  # (N, C)
    unit = unit_length(embeddings)
    cluster, distance = k_means(unit, clusters=config.clusters, seed=config.seed)
    components, explained = principal_components(unit, seed=config.seed)
    maps = {name: project(name, components, config) for name in config.methods}
    agreement = agreement_with_classes(cluster, tiles.labels)
    report = EmbedReport(
        encoder=config.encoder,
        encoder_name=start.encoder.name,
        encoder_fingerprint=start.fingerprint,
        num_features=start.encoder.num_features,
        preprocessing=Preprocessing(size_px=size_px, mean=start.mean, std=start.std),
        data=data,
        data_fingerprint=tiles.fingerprint,
        split=config.split,
        tiles=len(tiles),
        class_counts=tiles.class_counts(),
        variance_explained=tuple(explained[:2].tolist()),
        clusters=tuple(cluster_facts(cluster == number, tiles) for number in range(config.clusters)),
        agreement=agreement,
    )

    run.start_folder(out, config=plain(config), overwrite=overwrite)
    write_embeddings(out / "embeddings.npz", tiles, embeddings, cluster=cluster, maps=maps)
    for name, points in maps.items():
        draw_map(name, points, tiles, cluster=cluster, explained=explained, path=out / f"map_{name}.png")
    draw_clusters(tiles, cluster, config, path=out / "clusters.png")
    labels = [tiles.classes[label] if label >= 0 else None for label in tiles.labels]
    table = zip(tiles.ids, cluster.tolist(), (f"{value:.6f}" for value in distance), labels, strict=True)
    writing.write_csv(out / "clusters.csv", ["id", "cluster", "distance", "class"], table)
    write_record(out / "embed.json", report)

    weights = config.encoder.weights or f"random weights, seed {config.encoder.seed}"
    print(f"{start.encoder.name} ({weights}): {start.encoder.num_features} features of tiles at {size_px} px")
    sizes = np.bincount(cluster)
    print(
        f"{config.clusters} clusters of {sizes.min()} to {sizes.max()} tiles "
        f"(k-means at unit length, seed {config.seed})"
    )
    if agreement is not None:
        print(
            f"clusters against classes: adjusted Rand index {agreement.adjusted_rand_index:.3f} (chance: 0), "
            f"normalised mutual information {agreement.normalised_mutual_information:.3f}"
        )
    if "tsne" in maps and len(tiles) > config.tsne_tiles:
        print(f"note: the t-SNE map shows {config.tsne_tiles} of {len(tiles)} tiles, drawn at random (tsne_tiles)")
    pictures = [f"map_{name}.png" for name in maps]
    print(f"wrote {out}/embeddings.npz, {', '.join(pictures)}, clusters.png, clusters.csv, embed.json")


def check_umap() -> None:
    """Raise ValueError where UMAP is asked for and not installed."""
    try:
        import umap  # noqa: F401
    except ImportError as error:
        raise ValueError("methods: umap-learn is not installed; pip install 'sscl[umap]'") from error


def unit_length(embeddings: FloatArray) -> FloatArray:
    """Return the embeddings (N, C) at length 1.

    Raises:
        ValueError: all embeddings are the same.
    """
    length = np.linalg.norm(embeddings, axis=1, keepdims=True)
    unit: FloatArray = embeddings / np.maximum(length, 1e-12)
    if np.ptp(unit, axis=0).max() < 1e-6:
        raise ValueError("the encoder gives all tiles the same embedding: it has collapsed, or the tiles are identical")
    return unit


def k_means(unit: FloatArray, *, clusters: int, seed: int) -> tuple[NDArray[np.int64], FloatArray]:
    """Return the cluster of each tile, 0 the largest, int64 (N,), and the distance to its centre, (N,).

    Raises:
        ValueError: fewer different embeddings than clusters.
    """
    means = KMeans(n_clusters=clusters, n_init=10, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer clusters: said below
        found = means.fit_predict(unit)
    sizes = np.bincount(found, minlength=clusters)
    if not sizes.all():
        raise ValueError(f"clusters: must be <= {(sizes > 0).sum()} (different embeddings), got {clusters}")
    distance = np.linalg.norm(unit - means.cluster_centers_[found], axis=1)
    order = np.argsort(-sizes, kind="stable")
    return np.argsort(order)[found].astype(np.int64), distance.astype(np.float32)


def principal_components(unit: FloatArray, *, seed: int) -> tuple[FloatArray, NDArray[np.float64]]:
    """Return the first components, (N, <= 50), and the fraction of the variance on each."""
    pca = PCA(n_components=min(COMPONENTS, *unit.shape), random_state=seed)
    points = pca.fit_transform(unit).astype(np.float32)
    return points, pca.explained_variance_ratio_.astype(np.float64)


def project(method: str, components: FloatArray, config: EmbedConfig) -> FloatArray:
    """Return a point of the plane for each tile, (N, 2); not a number for tiles that the map leaves out."""
    if method == "pca":
        return components[:, :2]
    if method == "umap":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what it imports
            import umap

            neighbours = min(15, len(components) - 1)
            # One thread, and random instead of spectral starts for the few tiles that scipy cannot split.
            start = "spectral" if len(components) > 50 else "random"
            reducer = umap.UMAP(n_neighbors=neighbours, init=start, random_state=config.seed, n_jobs=1)
            return np.asarray(reducer.fit_transform(components), dtype=np.float32)
    points = np.full((len(components), 2), np.nan, dtype=np.float32)
    rows = np.arange(len(components))
    if len(rows) > config.tsne_tiles:
        rows = np.sort(np.random.default_rng(config.seed).choice(rows, config.tsne_tiles, replace=False))
    perplexity = min(30.0, (len(rows) - 1) / 3)
    tsne = TSNE(init="pca", perplexity=perplexity, random_state=config.seed)
    points[rows] = tsne.fit_transform(components[rows])
    return points


def agreement_with_classes(cluster: NDArray[np.int64], labels: NDArray[np.int64]) -> Agreement | None:
    """Return how the clusters agree with the classes of the labelled tiles; None below two classes."""
    known = labels >= 0
    if len(np.unique(labels[known])) < 2:
        return None
    return Agreement(
        tiles=int(known.sum()),
        adjusted_rand_index=float(adjusted_rand_score(labels[known], cluster[known])),
        normalised_mutual_information=float(normalized_mutual_info_score(labels[known], cluster[known])),
    )


def cluster_facts(members: NDArray[np.bool_], tiles: Tiles) -> Cluster:
    """Return a cluster's size and its tiles of each class, most frequent first, `unlabelled` among them."""
    counts = {name: int((members & (tiles.labels == label)).sum()) for label, name in enumerate(tiles.classes)}
    counts["unlabelled"] = int((members & (tiles.labels < 0)).sum())
    ordered = sorted((pair for pair in counts.items() if pair[1]), key=lambda pair: -pair[1])
    return Cluster(tiles=int(members.sum()), classes=dict(ordered))


def write_embeddings(
    path: Path, tiles: Tiles, embeddings: FloatArray, *, cluster: NDArray[np.int64], maps: dict[str, FloatArray]
) -> None:
    """Write ids, embeddings (N, C), labels, classes, groups if known, clusters and map points in one .npz."""
    arrays: dict[str, NDArray[Any]] = {
        "ids": np.array(tiles.ids, dtype=np.str_),
        "embeddings": embeddings.astype(np.float32),
        "labels": tiles.labels,
        "classes": np.array(tiles.classes, dtype=np.str_),
        "cluster": cluster,
    }
    if tiles.groups is not None:
        arrays["groups"] = tiles.groups
    arrays |= {f"map_{name}": points for name, points in maps.items()}
    with writing.replacing(path) as temporary, temporary.open("wb") as handle:
        np.savez(handle, **arrays)  # type: ignore[arg-type]  # numpy says bool, for allow_pickle


def draw_map(
    name: str,
    points: FloatArray,
    tiles: Tiles,
    *,
    cluster: NDArray[np.int64],
    explained: NDArray[np.float64],
    path: Path,
) -> None:
    """Draw a map coloured by class, or by cluster where nothing is labelled."""
    shown = np.isfinite(points).all(1)
    labelled = bool((tiles.labels[shown] >= 0).any())
    labels = tiles.labels if labelled else cluster
    classes = list(tiles.classes) if labelled else [f"cluster {number}" for number in range(cluster.max() + 1)]
    axes = tuple(f"component {i + 1} ({100 * x:.1f}% of the variance)" for i, fraction in enumerate(explained[:2]))
    embedding_plots.plot_map(
        points[shown],
        labels=labels[shown],
        classes=classes,
        path=path,
        title=f"{NAMES[name]} of {int(shown.sum()):,} tiles, coloured by {'class' if labelled else 'cluster'}",
        axis_labels=(axes[0], axes[1]) if name == "pca" else None,
    )


def draw_clusters(tiles: Tiles, cluster: NDArray[np.int64], config: EmbedConfig, *, path: Path) -> None:
    """Draw a row of random tiles for each cluster, with its size and its classes."""
    rows, captions = [], []
    for number in range(config.clusters):
        members = np.flatnonzero(cluster == number)
        rng = np.random.default_rng([config.seed, number])
        drawn = rng.choice(members, min(config.per_cluster, len(members)), replace=False)
        rows.append(np.stack([tiles.images[row] for row in drawn]))
        captions.append(cluster_caption(number, cluster_facts(cluster == number, tiles), total=len(tiles)))
    title = f"{config.clusters} clusters of {len(tiles):,} tiles, up to {config.per_cluster} drawn at random from each"
    embedding_plots.cluster_sheet(rows, captions=captions, path=path, title=title)


def cluster_caption(number: int, facts: Cluster, *, total: int) -> str:
    """Return number, size, and the three most frequent classes with their percentage of the cluster."""
    size, counts = facts.tiles, list(facts.classes.items())
    counts = [] if list(facts.classes) == ["unlabelled"] else counts
    lines = [f"cluster {number}", f"{size:,} tiles ({100 * size / total:.0f}%)"]
    for name, count in counts[:3]:
        short = name if len(name) <= 20 else f"{name[:19]}…"
        lines.append(f"{100 * count / size:.0f}% {short}")
    rest = sum(count for _, count in counts[3:])
    return "\n".join([*lines, f"{100 * rest / size:.0f}% others"] if rest else lines)
