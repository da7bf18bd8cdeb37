"""What a table says of slides: whose rows they are, and every fault with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from sscl.data.slides_csv import read_slides_csv
from sscl.slides.index import Labels

NAMES = ["a.svs", "sub/a.svs", "sub/b.ome.tiff", "TCGA-A6.01Z.svs", "scan"]


def table(folder: Path, text: str) -> Path:
    path = folder / "t.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_slide_goes_by_path_by_file_name_and_by_its_stem(tmp_path):
    text = "Slide;mpp;label\nsub\\a.svs;0,25;x\nb.ome.tiff;;y\nTCGA-A6.01Z;0.5;NA\nscan;;z\n./a.svs;;x\n"
    found = read_slides_csv(table(tmp_path, text), NAMES)
    assert {name: of.label for name, of in found.labels.items()} == {
        "sub/a.svs": "x", "sub/b.ome.tiff": "y", "TCGA-A6.01Z.svs": None, "scan": "z", "a.svs": "x",
    }  # fmt: skip
    assert found.mpp == {"sub/a.svs": 0.25, "TCGA-A6.01Z.svs": 0.5}
    assert (found.unknown, found.unnamed, found.notes()) == ((), (), [])


def test_what_is_not_there_is_said(tmp_path):
    found = read_slides_csv(table(tmp_path, "slide,patient,split\nscan,p,val\nTCGA-A6.01.svs,q,train\n"), NAMES)
    assert found.labels == {"scan": Labels(patient="p", split="validation")}
    assert found.unknown == ("TCGA-A6.01.svs",)
    assert len(found.unnamed) == 4
    unknown, unnamed = found.notes()
    assert "is TCGA-A6.01.svs TCGA-A6.01Z.svs?" in unknown
    assert "sub/b.ome.tiff" in unnamed


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name,label\na.svs,x\n", "column 'slide' is missing"),
        ("slide\na.svs\n", "says nothing"),
        ("slide,label\n", "no rows"),
        ("slide,label\nnot.svs,x\n", "names none of the 5 slides"),
        ("slide,label\nsub/a.svs,x\nsub\\a.svs,x\n", r"line 3: .* line 2 too"),
        ("slide,label\nscan,x\nscan,x\n", r"line 3: .* line 2 too"),
        ("slide,label\ngone,x\ngone,x\nscan,x\n", r"line 3: .* line 2 too"),
        ("slide,label\na,x\n", r"line 2: .* 2 slides \(a\.svs, sub/a\.svs\)"),
        ("slide,label\n,x\n", "line 2: column 'slide' is empty"),
        ("slide,mpp\nscan,half\n", "line 2: mpp 'half'"),
        ("slide,mpp\nscan,72\n", "line 2: mpp '72'"),
        ("slide,mpp\nscan,0\n", "line 2: mpp '0'"),
        ("slide,split\nscan,third\n", "line 2: split got 'third'"),
        ("slide,label,split\nscan,x,train\na.svs,x,\n", "line 3: has a label and no split"),
        ("slide,patient,split\nscan,p,train\na.svs,p,test\n", r"line 3: patient 'p' is in test, in line 2 in train"),
        ("slide,label,label\nscan,x,y\n", "comes 2 times"),
        ("slide,label\nscan,x,y\n", "line 2: 3 values"),
    ],
)
def test_a_fault_is_named_with_its_line(tmp_path, text, said):
    with pytest.raises(ValueError, match=rf"t\.csv: .*{said}"):
        read_slides_csv(table(tmp_path, text), NAMES)


def test_a_file_name_that_two_slides_have_means_neither(tmp_path):
    with pytest.raises(ValueError, match="2 slides"):
        read_slides_csv(table(tmp_path, "slide,label\na.svs,x\n"), ["x/a.svs", "y/a.svs"])
    found = read_slides_csv(table(tmp_path, "slide,label\na.svs,x\n"), NAMES)  # the path of one, the name of two
    assert list(found.labels) == ["a.svs"]
