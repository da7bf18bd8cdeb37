"""The runs of a probe: each encoder's features of each set, every classifier on them, and their nearest neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from sscl.config import ProbeConfig
from sscl.data import split
from sscl.evaluate import probe
from sscl.evaluate.metrics import IntArray
from sscl.evaluate.probe_inputs import EVALUATED, Job, Parts, embed, robust_tiles
from sscl.evaluate.probe_report import Fits
from sscl.evaluate.probe_results import Found, RunFacts
from sscl.evaluate.probe_shots import Labelled, ShotRun, shot_runs
from sscl.evaluate.robustness import Compared, Neighbourhood, counts_of_neighbours, index_of
from sscl.progress import Bar


@dataclass(eq=False)
class Done:
    """What every classifier on every encoder's features predicts, and how their neighbours look.

    Attributes:
        found: of the linear probe and kNN. fits: how the linear fits ended. shots: of SimpleShot.
        neighbourhoods: of each encoder. robust: by set, the tiles they are looked for among, or why they are not.
    """

    found: Found
    robust: dict[str, Compared | str]
    fits: Fits = field(default_factory=lambda: Fits(fits=0, unconverged=0))
    shots: list[ShotRun] = field(default_factory=list)
    neighbourhoods: list[Neighbourhood] = field(default_factory=list)


def predict(
    config: ProbeConfig,
    jobs: Sequence[Job],
    opened: dict[tuple[str, int], Parts],
    first: dict[str, Parts],
    *,
    device: torch.device,
    precision: str,
) -> Done:
    """Return what every classifier on every encoder's features predicts, and what their nearest neighbours share.

    Args:
        opened: parts by name of the set and size. first: those whose labels are reported, by name of the set.
    """
    found = Found()
    for name, parts in first.items():
        for part in EVALUATED:
            if part in parts:
                found.labels[name, part], found.groups[name, part] = parts[part].labels, parts[part].groups
    done = Done(found, {name: robust_tiles(parts) for name, parts in first.items()})
    fits = unconverged = 0
    total = len(jobs) * len(config.sets) * len(config.fractions) * len(config.label_seeds)
    with Bar(total, desc="probe" if config.progress else None, unit="fit", leave=True) as bar:
        for job in jobs:
            for data in config.sets:
                bar.note(f"{job.row.name}, {data.name}")
                parts = opened[data.name, job.size_px or data.size_px]
                embedded = embed(job, parts, data=data, config=config, device=device, precision=precision)
                without_fits(done, config, job, data.name, parts, embedded)
                for fraction, label_seed in ((f, s) for f in config.fractions for s in config.label_seeds):
                    drawn = draw_labels(parts, embedded, fraction=fraction, label_seed=label_seed)
                    linear, validation = fit_linear(drawn, config=config, label_seed=label_seed)
                    fits, unconverged = fits + linear.fits, unconverged + linear.unconverged
                    for part in (part for part in EVALUATED if part in parts):
                        facts = RunFacts(
                            encoder=job.row.name,
                            seed=job.seed,
                            set=data.name,
                            part=part,
                            fraction=fraction,
                            label_seed=label_seed,
                            labels=len(drawn.labels),
                            classifier="knn",
                        )
                        chosen = {
                            "classifier": "linear",
                            "c": linear.c,
                            "validation": validation,
                            "validation_scores": {f"{c:g}": score for c, score in linear.scores.items()},
                        }
                        found.runs.extend([facts.model_copy(update=chosen), facts])
                        found.predictions.extend(
                            classified(
                                drawn,
                                linear,
                                embedded[part],
                                neighbours=config.neighbours,
                                num_classes=len(parts["train"].tiles.classes),
                            )
                        )
                    bar.update()
    done.fits = Fits(fits=fits, unconverged=unconverged)
    return done


def without_fits(
    done: Done, config: ProbeConfig, job: Job, name: str, parts: Parts, embedded: dict[str, torch.Tensor]
) -> None:
    """Add what SimpleShot predicts for a set, from all training labels, and what nearest neighbours share."""
    train = Labelled(embedded["train"], parts["train"].labels)
    for part in (part for part in EVALUATED if part in parts and config.shots):
        done.shots += shot_runs(
            train,
            Labelled(embedded[part], parts[part].labels, parts[part].groups),
            classes=parts["train"].tiles.classes,
            shots=config.shots,
            draws=config.shot_draws,
            encoder=job.row.name,
            seed=job.seed,
            part=(name, part),
        )
    robust = done.robust[name]
    if not isinstance(robust, str):
        features = torch.cat([embedded[part] for part in parts])[torch.from_numpy(robust.rows)]
        counts = counts_of_neighbours(features, robust, neighbours=config.neighbours)
        estimate = index_of(*counts, robust.sample)
        done.neighbourhoods.append(Neighbourhood(job.row.name, job.seed, name, estimate, config.neighbours))


@dataclass(frozen=True, eq=False)
class Drawn:
    """Labelled features of a fraction of a set.

    Attributes:
        features: of the training part, (N, C). labels: (N,). groups: of these tiles, (N,), or None.
        validation_features, validation_labels: of the set's own validation part, (M, C) and (M,), or None.
    """

    features: torch.Tensor
    labels: IntArray
    groups: np.ndarray | None
    validation_features: torch.Tensor | None = None
    validation_labels: IntArray | None = None


def draw_labels(parts: Parts, embedded: dict[str, torch.Tensor], *, fraction: float, label_seed: int) -> Drawn:
    """Return a fraction of the training labels with their features, and the same fraction of the set's validation."""
    train = parts["train"]
    used = split.label_fraction(train.labels, fraction=fraction, seed=label_seed)
    x, y = embedded["train"][torch.from_numpy(used)], train.labels[used]
    groups = None if train.groups is None else train.groups[used]
    if "validation" not in parts:
        return Drawn(x, y, groups)
    own = split.label_fraction(parts["validation"].labels, fraction=fraction, seed=label_seed)
    return Drawn(x, y, groups, embedded["validation"][torch.from_numpy(own)], parts["validation"].labels[own])


def fit_linear(drawn: Drawn, *, config: ProbeConfig, label_seed: int) -> tuple[probe.LinearProbe, str]:
    """Return the linear probe, and where the validation tiles that chose its C came from.

    They are carved from the labels drawn, and then all of these are fitted; a set's own validation part is not fitted.
    """
    x, y = drawn.features, drawn.labels
    rows = np.arange(len(y))
    if drawn.validation_features is not None and drawn.validation_labels is not None:
        x, y = torch.cat([x, drawn.validation_features]), np.concatenate([y, drawn.validation_labels])
        folds, how = [(rows, np.arange(len(rows), len(y)))], "the set's own"
    else:
        folds, how = probe.validation_folds(
            y, fraction=config.validation_fraction, seed=label_seed, groups=drawn.groups
        )
    linear = probe.fit_linear_probe(
        x, y, folds=folds, grid=config.c_grid, rows=rows, max_iterations=config.max_iterations
    )
    return linear, how


def classified(
    drawn: Drawn, linear: probe.LinearProbe, queries: torch.Tensor, *, neighbours: int, num_classes: int
) -> tuple[IntArray, IntArray]:
    """Return what the linear probe, and kNN of k neighbours, predict for queries (M, C), class indices (M,) each."""
    votes = probe.knn_probabilities(
        drawn.features, torch.from_numpy(drawn.labels), queries, neighbours=neighbours, num_classes=num_classes
    )
    return linear.probabilities(queries, num_classes=num_classes).argmax(1), votes.numpy().argmax(1)
