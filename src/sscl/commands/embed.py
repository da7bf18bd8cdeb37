"""sscl embed: embeddings of a tile set, 2D maps of them, and k-means clusters with a contact sheet.

Maps and clusters use the embeddings at unit length, as contrastive pretraining compares them; embeddings.npz holds them
unscaled. N tiles, C features, k clusters.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sscl import run, writing
from sscl.config import DataConfig, EmbedConfig, EncoderConfig
from sscl.config.encoders import RANDOM
from sscl.data.load import all_rows, check_embeddable, describe_tiles, load_tiles
from sscl.data.scale import scale_of
from sscl.data.synthetic import is_synthetic
from sscl.data.tiles import Tiles, place_store
from sscl.device import describe_device, pick_device, pick_precision, tune
from sscl.evaluate.clusters import (
    Agreement,
    Cluster,
    FloatArray,
    agreement_with_classes,
    cluster_facts,
    k_means,
    principal_components,
    project,
    unit_length,
)
from sscl.models import features
from sscl.models.start import frozen_encoder
from sscl.plots import embedding as embedding_plots
from sscl.records import Record, write_record
from sscl.words import next_command

NAMES = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}


class Preprocessing(Record):
    """Side of the tiles, and channel means and standard deviations of pixels in 0-1."""

    size_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


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
    """Embed a split and write embeddings.npz, the maps, clusters.png, clusters.csv and embed.json."""
    device = pick_device(config.device)
    precision = pick_precision(config.precision, device)
    if "umap" in config.methods:
        check_umap()
    out = Path(config.out)
    inputs = {**config.data.files("data"), "encoder.weights": config.encoder.weights}
    with run.whole_folder(out, config, overwrite=overwrite, inputs=inputs) as folder:
        start = frozen_encoder(config.encoder, section="encoder.")
        size_px = start.size_px or config.data.size_px
        start.encoder.check_size(size_px)
        data = config.data.at(size_px)
        tiles = load_tiles(data, split=config.split, progress=config.progress)
        check_embeddable(data, tiles, key="data")
        if len(tiles) < max(4, config.clusters):
            raise ValueError(
                f"clusters: must be at most the number of tiles (4 or more), got {config.clusters} for "
                f"{len(tiles)} tiles"
            )
        for line in start.suits(scale_of(data, tiles), size_px=size_px):
            print(line)
        print(f"device: {describe_device(device)}, precision {precision}")
        print(describe_tiles(data, tiles, split=config.split))

        tune(device)
        embeddings = features.outputs(
            start.encoder.to(device).to(memory_format=torch.channels_last),
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
        maps = {
            name: project(name, components, seed=config.seed, tsne_tiles=config.tsne_tiles) for name in config.methods
        }
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

        write_embeddings(folder / "embeddings.npz", tiles, embeddings, cluster=cluster, maps=maps)
        for name, points in maps.items():
            draw_map(name, points, tiles, cluster=cluster, explained=explained, path=folder / f"map_{name}.png")
        draw_clusters(tiles, cluster, config, path=folder / "clusters.png")
        labels = [tiles.classes[label] if label >= 0 else None for label in tiles.labels]
        table = zip(tiles.ids, cluster.tolist(), (f"{value:.6f}" for value in distance), labels, strict=True)
        writing.write_csv(folder / "clusters.csv", ["id", "cluster", "distance", "class"], table)
        write_record(folder / "embed.json", report)

    from_random = config.encoder.weights in RANDOM
    weights = f"random weights, seed {config.encoder.seed}" if from_random else config.encoder.weights
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
    if not from_random:
        print(next_command("finetune", "LABELLED_TILES", f"from={config.encoder.weights}", "run=runs/classifier"))


def check_umap() -> None:
    try:
        import umap  # noqa: F401
    except ImportError as error:
        raise ValueError("methods: umap-learn is not installed; pip install 'sscl[umap]'") from error


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
        arrays["groups"] = np.asarray(tiles.groups)
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
    noun = "synthetic tiles" if is_synthetic("", tiles.ids) else "tiles"
    labelled = bool((tiles.labels[shown] >= 0).any())
    labels = tiles.labels if labelled else cluster
    classes = list(tiles.classes) if labelled else [f"cluster {number}" for number in range(cluster.max() + 1)]
    axes = tuple(f"component {i + 1} ({100 * x:.1f}% of the variance)" for i, x in enumerate(explained[:2]))
    embedding_plots.plot_map(
        points[shown],
        labels=labels[shown],
        classes=classes,
        path=path,
        title=f"{NAMES[name]} of {int(shown.sum()):,} {noun}, coloured by {'class' if labelled else 'cluster'}",
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
    noun = "synthetic tiles" if is_synthetic("", tiles.ids) else "tiles"
    title = f"{config.clusters} clusters of {len(tiles):,} {noun}, up to {config.per_cluster} drawn at random from each"
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
