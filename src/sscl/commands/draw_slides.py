"""`sscl slides synth`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from sscl.config import SynthSlidesConfig
from sscl.cores import cpu_cores
from sscl.data.drawn_cohort import CohortEntry, cohort, write_cohort
from sscl.evaluate.intervals import FEWEST
from sscl.words import count, next_command, wrapped

_PIXELS_AT_ONCE = 2**29  # about 16 GB, over all processes


def main(config: SynthSlidesConfig) -> None:
    """Write drawn slides, their table and their truth."""
    entries = write_cohort(
        Path(config.root),
        count=config.count,
        size_px=config.size_px,
        mpp=config.mpp,
        seed=config.seed,
        both=config.both,
        pen=config.pen,
        test_fraction=config.test_fraction,
        ending=config.format,
        workers=min(cpu_cores(), config.count, max(1, _PIXELS_AT_ONCE // config.size_px**2)),
        progress=config.progress,
    )
    print(f"wrote {count(config.count, 'drawn slide')} to {config.root}: slides, slides.csv, truth, annotations")
    for note in few_for_testing(entries, config):
        print(wrapped(f"note: {note}"))
    table = f"slides_csv={config.root}/slides.csv"
    print(
        next_command(
            "slides tile", f"{config.root}/slides", f"out={config.root}-tiles", f"mpp={max(2.0, config.mpp):g}", table
        )
    )


def few_for_testing(entries: Sequence[CohortEntry], config: SynthSlidesConfig) -> list[str]:
    """Return a sentence where a test split has too few patients for intervals, with the count that has enough."""
    test = patients_of_test(entries)
    if test >= FEWEST or config.test_fraction == 0:
        return []
    made = partial(cohort, both=config.both, test_fraction=config.test_fraction)
    counts = range(len(entries) + -len(entries) % 4, 1000, 4)  # as many patients of each class
    enough = next((f"; count={n} has them" for n in counts if patients_of_test(made(n)) >= FEWEST), "")
    return [f"{count(test, 'patient')} in the test split: intervals of sscl eval need {FEWEST}{enough}"]


def patients_of_test(entries: Sequence[CohortEntry]) -> int:
    return len({entry.patient for entry in entries if entry.split == "test"})
