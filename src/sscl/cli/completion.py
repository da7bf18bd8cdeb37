"""sscl completion: a script for bash, zsh or fish that completes commands, keys, their values, configs and files.

It is made from the table of commands and their settings, and starts no Python while one types.
"""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, get_args

from sscl.cli.arguments import CONFIG
from sscl.cli.table import COMMANDS, OPTIONS

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from sscl.config import CompletionConfig, Section


@dataclass(frozen=True)
class Completed:
    """What follows a command.

    Attributes:
        options: with their dashes, and what they do.
        keys: of its configuration, and what they mean, the common ones first.
        values: of the keys that have few; a key that is not here has numbers, text or files.
    """

    options: Mapping[str, str]
    keys: Mapping[str, str]
    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def main(config: CompletionConfig) -> None:
    """Print the script; how it is installed stands at its top."""
    print(SCRIPTS[config.shell](), end="")


def completed(name: str) -> Completed:
    """Return what follows a command."""
    from sscl import config as configs
    from sscl.config.help import common_keys
    from sscl.config.loader import main_name

    command = COMMANDS[name]
    kind = getattr(configs, command.config)
    options = {"--help": "the keys that matter most", "--help-all": "every key", "--config": OPTIONS["config"][1]}
    options |= {f"--{option}": OPTIONS[option][1] for option in (*command.flags, *dict(command.options))}
    every = dict(_keys(kind))
    first = {key: every[key] for key in common_keys(kind) if key in every}
    found = {**first, **every}
    for other in ("from", "run"):  # other names of a key
        if (meant := main_name(kind, other)) in found:
            found[other] = found[meant]
    values = {key: some for key, about in found.items() if (some := _values(key, about))}
    keys = {key: (about.description or "").split(";")[0] for key, about in found.items()}
    return Completed(options, keys, values)


def _keys(kind: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield every key that can be typed as KEY=VALUE, with those below keys as eval's data."""
    from sscl.config.sections import field_at, keys, section_below

    for key, about in keys(kind).items():
        if ".N." in key:  # of a list, which is written in YAML
            continue
        given = field_at(kind, key.split("."))
        below = None if given is None else section_below(given)
        if below is None:
            yield f"{prefix}{key}", about
        else:
            yield from _keys(below, f"{prefix}{key}.")


def _values(key: str, about: FieldInfo) -> tuple[str, ...]:
    from sscl.config.encoders import ENCODERS, EncoderName
    from sscl.config.published import PUBLISHED
    from sscl.config.sections import choices

    name = key.rpartition(".")[2]
    if about.annotation is bool:
        return ("true", "false")
    if name == "device":
        return ("auto", "cpu", "cuda", "mps")
    if name == "name" and any(mark in about.metadata for mark in get_args(EncoderName)[1:]):
        return (*ENCODERS, *PUBLISHED)
    return tuple(map(str, choices(about)))


# --- bash and zsh ---


def _tables() -> str:
    """Return shell functions that say what there is: words with spaces between, for bash and zsh alike."""
    from sscl.config import shipped
    from sscl.config.encoders import ENCODERS
    from sscl.config.published import PUBLISHED

    named = {name: _configs(name, shipped.names()) for name in COMMANDS}
    named["encoders"] = " ".join((*ENCODERS, *PUBLISHED))
    of = {name: completed(name) for name in COMMANDS}
    groups = sorted({name.split()[0] for name in COMMANDS if " " in name})
    top = dict.fromkeys([*(name.split()[0] for name in COMMANDS), "--help", "--version"])
    lines = [
        _function("_sscl_commands", {"": " ".join(top)}),
        _function(
            "_sscl_group",
            {group: " ".join(name.split()[1] for name in COMMANDS if name.split()[0] == group) for group in groups},
        ),
        _function("_sscl_options", {name: " ".join(found.options) for name, found in of.items()}),
        _function("_sscl_keys", {name: " ".join(f"{key}=" for key in found.keys) for name, found in of.items()}),
        _function("_sscl_configs", named),
        _function(
            "_sscl_values",
            {f"{name} {key}": " ".join(some) for name, found in of.items() for key, some in found.values.items()},
        ),
    ]
    return "\n".join(lines)


def _configs(name: str, names: list[str]) -> str:
    """Return the shipped configs that a command may take: those named after it, and all for `sscl configs`."""
    if name == "configs":
        return " ".join(names)
    if CONFIG not in COMMANDS[name].takes:
        return ""
    last = name.split()[-1]
    own = [one for one in names if one.rpartition("/")[2].split("_")[0] == last]
    return " ".join(own)


def _function(name: str, cases: Mapping[str, str]) -> str:
    """Return a function that prints the words of a case; cases with the same words share a line."""
    by_words: dict[str, list[str]] = {}
    for case, words in cases.items():
        if words:
            by_words.setdefault(words, []).append(shlex.quote(case))
    lines = [f"    {'|'.join(those)}) echo {shlex.quote(words)} ;;" for words, those in by_words.items()]
    return "\n".join([f"{name}() {{", '  case "$1" in', *lines, "  esac", "}"])


def bash() -> str:
    """Return the script for bash 3.2 and later."""
    return f"""# Completion of sscl in bash. For this shell:  eval "$(sscl completion bash)"
# For all:  sscl completion bash > ~/.local/share/bash-completion/completions/sscl
{_tables()}
{_BASH}"""


def zsh() -> str:
    """Return the script for zsh."""
    return f"""#compdef sscl
# Completion of sscl in zsh. For this shell, after compinit:  eval "$(sscl completion zsh)"
# For all:  sscl completion zsh > FOLDER/_sscl, with FOLDER in $fpath
{_tables()}
{_ZSH}"""


_BASH = r"""_sscl() {
  local line="${COMP_LINE:0:COMP_POINT}" cur found name word key offers=""
  local IFS=$' \t\n'
  local -a words
  cur="${line##*[[:space:]]}"
  read -ra words <<< "${line%"$cur"}"
  COMPREPLY=()
  name="${words[1]}"
  if [ -n "$name" ] && [ -n "$(_sscl_group "$name")" ]; then
    if [ -z "${words[2]}" ]; then
      offers="$(_sscl_group "$name")"
    else
      name="$name ${words[2]}"
    fi
  elif [ -z "$name" ]; then
    offers="$(_sscl_commands)"
  fi
  if [ -z "$offers" ]; then
    case "$cur" in
      -*) offers="$(_sscl_options "$name")" ;;
      *=*) key="${cur%%=*}"
        for word in $(_sscl_values "$name $key"); do offers="$offers $key=$word"; done ;;
      *) offers="$(_sscl_configs "$name") $(_sscl_keys "$name")" ;;
    esac
    case "$cur" in
      -*|"") ;;
      *=*) [ -n "$offers" ] || _sscl_files "${cur#*=}" "${cur%%=*}=" ;;
      *) _sscl_files "$cur" "" ;;
    esac
  fi
  for word in $offers; do
    case "$word" in
      "$cur"*=) COMPREPLY+=("$word") ;;
      "$cur"*) COMPREPLY+=("$word ") ;;
    esac
  done
  # Readline replaces what comes after the last =, where that breaks words.
  case "$cur$COMP_WORDBREAKS" in
    *=*=*) for found in "${!COMPREPLY[@]}"; do COMPREPLY[found]="${COMPREPLY[found]#"${cur%%=*}="}"; done ;;
  esac
}
_sscl_files() {
  local found start="$1"
  case "$start" in "~/"*) start="$HOME/${start#"~/"}" ;; esac
  while IFS= read -r found; do
    [ -n "$found" ] || continue
    if [ -d "$found" ]; then found="$(printf %q "$found")/"; else found="$(printf %q "$found") "; fi
    COMPREPLY+=("$2$found")
  done <<< "$(compgen -f -- "$start")"
}
complete -o nospace -F _sscl sscl
"""

_ZSH = r"""_sscl() {
  local name="${words[2]}" cur="${PREFIX}" key
  local -a found keys
  if (( CURRENT == 2 )); then
    compadd -- ${=$(_sscl_commands)}
    return
  fi
  if [[ -n "$(_sscl_group "$name")" ]]; then
    if (( CURRENT == 3 )); then
      compadd -- ${=$(_sscl_group "$name")}
      return
    fi
    name="$name ${words[3]}"
  fi
  case "$cur" in
    -*) compadd -- ${=$(_sscl_options "$name")} ;;
    *=*) key="${cur%%=*}"
      compset -P '*='
      found=(${=$(_sscl_values "$name $key")})
      if (( $#found )); then compadd -- $found; else _files; fi ;;
    *) found=(${=$(_sscl_configs "$name")}) keys=(${=$(_sscl_keys "$name")})
      compadd -- $found
      compadd -S '' -- $keys
      _files ;;
  esac
}
if [ "$funcstack[1]" = _sscl ]; then _sscl "$@"; else compdef _sscl sscl; fi
"""


# --- fish ---


def fish() -> str:
    """Return the script for fish, which shows what each word means."""
    from sscl.config import shipped

    lines = [
        "# Completion of sscl in fish. For this shell:  sscl completion fish | source",
        "# For all:  sscl completion fish > ~/.config/fish/completions/sscl.fish",
        _FISH.strip(),
    ]
    groups = {name.split()[0] for name in COMMANDS if " " in name}
    for group in sorted(groups):
        lines.append(f"complete -c sscl -n __sscl_first -f -a {group} -d 'its commands: sscl {group} --help'")
    for name, command in COMMANDS.items():
        first, _, second = name.partition(" ")
        where = f"__sscl_is {first}" if second else "__sscl_first"
        lines.append(f"complete -c sscl -n '{where}' -f -a {second or first} -d {_quoted(command.summary)}")
    for name in COMMANDS:
        found, here = completed(name), f"__sscl_is {name}"
        for option, about in found.options.items():
            lines.append(f"complete -c sscl -n '{here}' -l {option.removeprefix('--')} -d {_quoted(about)}")
        for config in _configs(name, shipped.names()).split():
            lines.append(f"complete -c sscl -n '{here}' -a {config} -d {_quoted(shipped.title(config))}")
        for key, about in found.keys.items():
            lines.append(f"complete -c sscl -n '{here}' -a '{key}=' -d {_quoted(about)}")
        for key, some in found.values.items():
            words = " ".join(f"{key}={word}" for word in some)
            lines.append(f"complete -c sscl -n '{here}; and __sscl_sets {key}' -f -a '{words}'")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """Return a text quoted for fish, in which ' and \\ alone are special."""
    text = inspect.cleandoc(text).replace("\n", " ").replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"


_FISH = r"""
function __sscl_words
    commandline -opc | string match -v -- '-*'
end
function __sscl_first
    test (count (__sscl_words)) -eq 1
end
function __sscl_is
    set -l words (__sscl_words)
    set -l last (count _ $argv)
    test (count $words) -ge $last; and test "$words[2..$last]" = "$argv"
end
function __sscl_sets
    string match -q -- "$argv[1]=*" (commandline -ct)
end
"""

SCRIPTS = {"bash": bash, "zsh": zsh, "fish": fish}
