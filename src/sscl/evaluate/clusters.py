"""Clusters and 2D maps of embeddings.

N tiles, C features, k clusters.
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.manifold import TSNE
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from sscl.data.tiles import Tiles
from sscl.records import Record

FloatArray = NDArray[np.float32]
COMPONENTS = 50  # of the PCA that t-SNE and UMAP start from, as van der Maaten & Hinton did


class Cluster(Record):
    """A cluster's size and its tiles of each class, most frequent first; `unlabelled` counts as one."""

    tiles: int
    classes: dict[str, int]


class Agreement(Record):
    """How the clusters agree with the classes of the labelled tiles."""

    tiles: int
    adjusted_rand_index: float
    normalised_mutual_information: float


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


def project(method: str, components: FloatArray, *, seed: int, tsne_tiles: int) -> FloatArray:
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
            reducer = umap.UMAP(n_neighbors=neighbours, init=start, random_state=seed, n_jobs=1)
            return np.asarray(reducer.fit_transform(components), dtype=np.float32)
    points = np.full((len(components), 2), np.nan, dtype=np.float32)
    rows = np.arange(len(components))
    if len(rows) > tsne_tiles:
        rows = np.sort(np.random.default_rng(seed).choice(rows, tsne_tiles, replace=False))
    perplexity = min(30.0, (len(rows) - 1) / 3)
    tsne = TSNE(init="pca", perplexity=perplexity, random_state=seed)
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
