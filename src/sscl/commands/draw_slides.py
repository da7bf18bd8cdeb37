"""`sscl slides synth`."""

from __future__ import annotations

from pathlib import Path

from sscl.config import SynthSlidesConfig
from sscl.data.drawn_cohort import write_cohort
from sscl.device import cpu_cores
from sscl.words import count, next_command

_PIXELS_AT_ONCE = 2**29  # about 16 GB, over all processes


def main(config: SynthSlidesConfig) -> None:
    """Write drawn slides, their table and their truth.

    Raises:
        ValueError: bad input, in one line.
    """
    write_cohort(
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
    table = f"slides_csv={config.root}/slides.csv"
    print(
        next_command(
            "slides tile", f"{config.root}/slides", f"out={config.root}-tiles", f"mpp={max(2.0, config.mpp):g}", table
        )
    )
