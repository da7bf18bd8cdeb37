"""Configurations that are hard to take: values, aliases, depth, length, tags and numbers in YAML."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torturing.poison import Random, damaged, pick, text


def yaml_text(rng: Random, lines: Sequence[str]) -> bytes:
    """Return a configuration with values replaced, constructs added, or bytes damaged."""
    lines = list(lines)
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(len(lines) + 1))
        kind = rng.random()
        if kind < 0.5 and at < len(lines) and ":" in lines[at]:
            lines[at] = f"{lines[at].split(':')[0]}: {bomb(rng) if rng.random() < 0.4 else text(rng)}"
        elif kind < 0.7:
            lines.insert(at, f"{' ' * int(rng.integers(5))}{text(rng)}: {bomb(rng)}")
        elif kind < 0.8 and lines:
            lines.insert(at, pick(rng, lines))
        elif kind < 0.9:
            lines.insert(at, pick(rng, ("---", "...", "%YAML 9.9", "? a", "\t", "- a", ": b", "!!map {}", "&a", "*a")))
        else:
            del lines[at : at + int(rng.integers(1, 4))]
    found = "\n".join(lines).encode("utf-8", "surrogatepass") + b"\n"
    if rng.random() < 0.15:
        found = damaged(rng, found, other=found)
    return found.decode("utf-8", "replace").encode(pick(rng, ("utf-16", "utf-8-sig"))) if rng.random() < 0.05 else found


def bomb(rng: Random) -> str:
    """Return a value in YAML that is short to write and long, deep or strange to read."""
    return str(pick(rng, _BOMBS)(rng))


def _laughs(rng: Random) -> str:
    wide, deep = int(rng.integers(2, 12)), int(rng.integers(2, 14))
    parts = ["&a0 [x]"] + [f"&a{i} [{', '.join([f'*a{i - 1}'] * wide)}]" for i in range(1, deep)]
    return f"[{', '.join(parts)}]"


def _merges(rng: Random) -> str:
    wide, deep = int(rng.integers(2, 8)), int(rng.integers(2, 12))
    parts = ["&m0 {x: 1}"] + [f"&m{i} {{<<: [{', '.join([f'*m{i - 1}'] * wide)}], k{i}: 1}}" for i in range(1, deep)]
    return f"[{', '.join(parts)}]"


def _nested(rng: Random) -> str:
    opening, closing = pick(rng, (("[", "]"), ("{a: ", "}"), ("[{a: ", "}]"), ("- ", "")))
    deep = int(10 ** rng.uniform(1, 4.7))
    return f"{opening * deep}x{closing * (deep if rng.random() < 0.7 else 0)}"


def _many(rng: Random) -> str:
    number = int(10 ** rng.uniform(1, 5.3))
    if rng.random() < 0.5:
        return f"[{', '.join(map(str, range(number)))}]"
    return f"{{{', '.join(f'k{i}: {i}' for i in range(number))}}}"


def _long_number(rng: Random) -> str:
    digits = int(10 ** rng.uniform(1, 5.5))
    whole = (f"1{'0' * digits}", f"1{'_' * digits}", f"0x{'f' * digits}", f"0b{'1' * digits}", f"0{'7' * digits}")
    return str(pick(rng, (*whole, f"1{':59' * digits}", f"1{':59' * digits}.5", f"0.{'1' * digits}e{'9' * digits}")))


def _tagged(rng: Random) -> str:
    kinds = (
        "int",
        "float",
        "bool",
        "null",
        "timestamp",
        "binary",
        "set",
        "omap",
        "pairs",
        "str",
        "seq",
        "map",
        "merge",
    )
    others = ("!python/object/apply:os.system", "!python/name:os.system", "!python/tuple", "!python/object/new:set")
    tag = pick(
        rng, (*(f"!!{kind}" for kind in kinds), *(f"!{other}" for other in others), "!", "!x", "!<>", "!<tag:x>")
    )
    given = (
        "''",
        "maybe",
        "':'",
        "x",
        "[]",
        "{}",
        "[a]",
        "{a: 1}",
        "'touch PWNED'",
        "[touch PWNED]",
        "1:",
        "2026-99-99",
    )
    return f"{tag} {pick(rng, given)}"


def _selves(rng: Random) -> str:
    selves = ("&a [*a]", "&a {x: *a}", "&a {<<: *a}", "{? &a [*a] : 1}", "&a [&b [*a, *b]]", "&a &b x", "*none")
    keys = ("{<<: x}", "{<<: [1]}", "{[1]: 2}", "{{a: 1}: 2}", "{null: 1}", "{1.5: 1}", "{=: 1}", "=")
    return str(pick(rng, (*selves, *keys)))


def _escaped(rng: Random) -> str:
    return str(
        pick(rng, (r'"\ud800"', r'"\U00110000"', r'"\x00"', r'"\xZZ"', r'"\N\_\L\P"', '"', "'", "|\n", ">9\n", "|+-"))
    )


_BOMBS: tuple[Callable[[Random], str], ...] = (
    _laughs, _merges, _nested, _many, _long_number, _tagged, _tagged, _selves, _selves, _escaped, text
)  # fmt: skip
