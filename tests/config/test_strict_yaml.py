"""YAML that hangs, grows, names types or breaks PyYAML ends in one line; what people write in configs is read."""

from __future__ import annotations

import pytest

from sscl.config import GradcamConfig, PretrainConfig, load_config, read_yaml, strict_yaml


def growing(line: str, *, levels: int = 12) -> str:
    """Anchors that each stand for the one before, nine times."""
    return "a0: &a0 {x: 1}\n" + "".join(
        f"a{i}: &a{i} {line.format(', '.join([f'*a{i - 1}'] * 9))}\n" for i in range(1, levels)
    )


WEAPONS = {
    "billion laughs": growing("[{}]"),
    "merge keys": growing("{{<<: [{}]}}"),
    "a chain of anchors": "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 40)),
    "contains itself": "a: &a [*a]",
    "merges itself": "a: &a {<<: *a}",
    "deep in brackets": "a: " + "[" * 3000,
    "deep in braces": "a: " + "{a: " * 3000,
    "deep in dashes": "- " * 3000,
    "many values": "a: [" + "1," * 20_001 + "]",
    "long text": "a: " + "x" * 5000,
    "two documents": "a: 1\n---\nb: 2\n",
    "another version": "%YAML 9.9\n---\na: 1",
    "a version of 5,000 digits": f"%YAML {'9' * 5000}.1\n---\na: 1",
    "a tag's handle": "%TAG ! tag:x,2000:\n---\na: !b 1",
    "no mapping to merge": "<<: 3",
    "no mappings to merge": "<<: [1]",
    "a key twice": "a: {b: 1, b: 2}",
    "a key that is none": "{a: 1}: 2",
    "NUL": "a: \0",
    "NUL, escaped": r'a: "\0"',
    "half of a surrogate pair": r'a: "\ud800"',
    "no character": r'a: "\UFFFFFFFF"',
    "no character either": r'a: "\U00110000"',
    "tab": "a:\n\t- b",
    **{
        tag: f"a: {tag}"
        for tag in (
            *("!!int ''", "!!bool maybe", "!!float ':'", "!!timestamp x", "!!binary x", "!!null x", "!!str x"),
            *("!!python/name:os.system", "!!set {a}", "!!omap [a: 1]", "!!pairs [a: 1]", "!foo x", "! x", "!<x> y"),
            *("<<", "*unknown", "[a", "{a", '"', "|\n x\n- y", "%", "@a", "`a"),
        )
    },
}


@pytest.mark.parametrize("text", WEAPONS.values(), ids=WEAPONS)
def test_a_weapon_ends_in_one_line_with_its_number(tmp_path, text):
    file = tmp_path / "config.yaml"
    file.write_text(text, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(ValueError) as caught:
        load_config(PretrainConfig, file)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{file}: line ")


def test_numbers_are_decimal_and_of_sane_length():
    read = strict_yaml.read("[1, -2, 1_000, 1__, 1.5, 1., .5, 1e-4, 1E5, -1.0e+3, .inf]")
    assert read == [1, -2, 1000, 1, 1.5, 1.0, 0.5, 1e-4, 1e5, -1000.0, float("inf")]
    texts = ["1:30", "1:30.5", "010", "0x1f", "0b1", "=", "2024-01-31", "._", "_1", "٣e5", "1e", "x"]
    assert strict_yaml.read(f"[{', '.join(texts)}]") == texts
    long = "1" * 4000
    assert strict_yaml.read(f"[{long}, {long}.5, 1{'_' * 200}, {'1:' * 100}1]")[0] == long


def test_what_configs_use_is_read():
    text = """\
# anchors and merge keys, a key that is merged into a mapping which overrides it, and used before it is deep enough
base: &base {root: d, size_px: 32}
deep: {er: {one: &one {<<: *base, size_px: 64}}}
two: {<<: *one, fit: crop}
three: {<<: [*base, {fit: resize}]}
on: off
"2024": ~
"""
    read = strict_yaml.read(text)
    assert read["two"] == {"root": "d", "size_px": 64, "fit": "crop"}
    assert read["three"] == {"root": "d", "size_px": 32, "fit": "resize"}
    assert (read["on"], read["2024"]) == (False, None)


def test_what_an_anchor_stands_for_is_changed_in_one_place_alone(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("run: r\ndata:\n- &d {root: a}\n- *d\n")
    loaded = load_config(PretrainConfig, file, overrides=["data.1.root=b"])
    assert [source.root for source in loaded.data] == ["a", "b"]


def test_the_file_is_text_of_bounded_size(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_bytes(b"\xef\xbb\xbfrun: r\r\n")  # as Windows writes it
    assert read_yaml(file) == {"run": "r"}
    for content in (b"#" * 2**20 + b"\n", "run: r".encode("utf-16"), b"run: \xe4"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"^\S+config\.yaml: "):
            read_yaml(file)


@pytest.mark.parametrize("word", ["train=[[[[", "train={a: 1, a: 2}", "augment.scale=[!!int '']", "seed={a: &a [*a]}"])
def test_a_word_of_the_command_line_names_its_key(word):
    with pytest.raises(ValueError) as caught:
        load_config(PretrainConfig, overrides=["run=r", "data.root=d", word])
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{word.partition('=')[0]}: ")


def test_a_text_of_the_command_line_has_a_bound():
    with pytest.raises(ValueError, match=r"^run: "):
        load_config(PretrainConfig, overrides=[f"run={'x' * 5000}", "data.root=d"])
    assert load_config(GradcamConfig, overrides=["checkpoint=c", "ids=[!x"]).ids == ("[!x",)


def test_of_many_faults_some_are_said(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("run: r\ndata: {root: d}\n" + "".join(f"k{i}: 1\n" for i in range(100)))
    with pytest.raises(ValueError, match="and 80 faults more") as caught:
        load_config(PretrainConfig, file)
    assert len(str(caught.value).splitlines()) == 21
