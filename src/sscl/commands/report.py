"""sscl report: what runs have found on one page, with a gallery of tiles to review."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from sscl import children, run, writing
from sscl.config import ReportConfig
from sscl.evaluate.lineage import folder_of
from sscl.evaluate.records import Evaluation
from sscl.models import checkpoint
from sscl.records import read_record
from sscl.report import page
from sscl.report.contents import page_content
from sscl.report.folders import sort_folders
from sscl.report.predicted import Predicted, predicted_content, read_predicted
from sscl.report.predicted_slides import slides_content
from sscl.report.reviewed import review_lines, reviews_section
from sscl.report.reviews import Reviewed, check_files, read_reviews
from sscl.report.subject import Subject, add_own_folders, read_subject, worksheet_id
from sscl.words import say_next


def main(config: ReportConfig, *, overwrite: bool = False) -> int:
    """Write the page, whole or not at all, and return the exit code."""
    sources = sort_folders(config.runs)
    own = next(iter(sources.get("finetune", [])), None)  # what the page is about
    name = "reviewed.html" if config.reviews else "report.html"
    out = Path(config.out) if config.out is not None else Path(own or config.runs[0]) / name
    check_page(out, overwrite=overwrite)
    check_files(config.reviews)
    predicted = None
    if "predict" in sources and len(config.runs) > 1:
        raise ValueError("runs: a folder of sscl predict has a page of its own; name it alone")
    slides_alone = len(config.runs) == 1 and "slides" in sources
    if slides_alone and config.reviews:
        raise ValueError(
            "reviews: those of a slide are read on its own page (slide.html); as labels, by sscl eval RUN INDEX "
            "data.reviews=[WORKSHEETS]"
        )
    if "predict" in sources:
        predicted = read_predicted(sources["predict"][0])
    subject = None
    if own is not None:
        there = folder_of(Path(own), "eval", config.data, config.split)
        if not evaluate_where_missing(own, there, config, overwrite=overwrite):
            return 2
        subject = read_subject(own, there)
        add_own_folders(sources, subject)
    reviewed = reviewed_tiles(subject, predicted) if config.reviews else None
    reviews = [] if reviewed is None else read_reviews(config.reviews, reviewed)
    environment = run.environment()
    made_on = f"{environment.date[:16].replace('T', ' ')} UTC"
    made = f"Made by sscl report {environment.sscl} on {made_on}: {environment.command}"
    if slides_alone:
        content = slides_content(sources["slides"][0], out=out, made=made, blind=config.blind)
    elif predicted is not None:
        content = predicted_content(predicted, config, made=made)
    else:
        content = page_content(sources, subject, config, out=out, made=made)
    if reviewed is not None:
        content["sections"].insert(1, reviews_section(reviews, reviewed))
    html = page.render(content)
    with writing.holding(out):
        writing.write_text(out, html)
    for line in review_lines(reviews, reviewed) if reviewed is not None else ():
        print(line)
    shown = 0 if content["gallery"] is None else len(content["gallery"]["tiles"])
    found = subject or predicted
    total = shown if found is None else len(found.found.ids)
    tiles = f"{shown:,} of {total:,} tiles" if shown < total else f"{shown:,} tiles"
    tiles = tiles if not slides_alone else "a link to each slide"
    print(f"wrote {out} ({max(0.1, len(html.encode()) / 1e6):.1f} MB, {tiles}); open it in a browser, it works offline")
    if slides_alone:
        say_next("slides view", config.runs[0])
    if own is not None:
        say_next("predict", own, "NEW_TILES_OR_SLIDES")
    return 0


def reviewed_tiles(subject: Subject | None, predicted: Predicted | None) -> Reviewed:
    """Return the tiles that a worksheet of the page is about."""
    if subject is not None:
        return Reviewed(worksheet_id(subject), subject.found)
    if predicted is None:
        raise ValueError("reviews: are of the tiles of a classifier; name its run, or a folder of sscl predict")
    return Reviewed(predicted.key, predicted.found)


def check_page(out: Path, *, overwrite: bool) -> None:
    """Raise ValueError if the page would replace a file that it must not."""
    if out.is_dir():
        raise ValueError(f"out: {out} is a folder; name a file that ends in .html")
    if out.exists() and not out.is_file():
        raise ValueError(f"out: {out} is a device, a named pipe or a socket; name a file that ends in .html")
    if out.exists() and not overwrite:
        raise ValueError(f"{out}: exists; give --overwrite to replace it, or another file with out=")
    if out.exists() and page.MARK not in out.read_text(encoding="utf-8", errors="replace"):
        raise ValueError(f"{out}: not written by sscl report, so --overwrite leaves it alone; name another file")


def evaluate_where_missing(folder: Path, there: Path, config: ReportConfig, *, overwrite: bool) -> bool:
    """Run `sscl eval` where a run has no evaluation of its checkpoint in `there`; False: it refused, and said why."""
    words = ["eval", f"checkpoint={folder}", f"split={there.name.rsplit('_', 1)[1]}", f"device={config.device}"]
    for key, value in config.data.items():
        words.append(f"data.{key}={value if isinstance(value, str) else json.dumps(value)}")
    words += [f"out={there}"] if config.data else []
    words += [] if config.progress else ["progress=false"]
    if (there / "predictions.csv").is_file() and (there / "metrics.json").is_file():
        evaluated = read_record(Evaluation, there / "metrics.json", made_by="sscl eval")
        if evaluated.epoch == checkpoint.load_checkpoint(folder, kind="finetune", tensors=False).epoch:
            return True
        if not overwrite:
            raise ValueError(f"{there}: evaluates another checkpoint; give --overwrite to evaluate again")
        words.append("--overwrite")
    print(f"$ sscl {shlex.join(words)}", flush=True)
    code = children.run_command(words)
    if code not in (0, 2):
        raise ValueError(f"report: `sscl eval` failed with exit code {code}, see above")
    if code == 0:
        print()
    return code == 0
