"""The pages of this folder run as they are read: every code block, in order, in an empty folder.

    python -m pytest docs                    # all pages
    python -m pytest docs/tutorial.md

What the word after the fence means, and what may follow it:

    python                   runs, in one namespace for the page
    python title="net.py"    is written to that file; so is toml title="r.toml"
    sh                       runs in bash; `iqvit` alone in this process, which saves loading torch
    sh exit=2                ends with that status
    sh norun                 is shown, not run: it needs what a test machine lacks
    text                     is what the block before it printed

In a text block `...` stands for anything, alone on a line for any lines, and `~9.1` for a number
that is at most a quarter larger or smaller. Everything else must be equal, but for white space.
"""

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack, chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

from sybil import Document, Example, Region, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer

ENVIRONMENT = {"IQVIT_CACHE": "off", "TERM": "xterm", "NO_COLOR": "1", "COLUMNS": "110"}
TOLERANCE = 0.25
FENCES = RawFencedCodeBlockLexer(re.compile(r"(?P<info>.*)$\n", re.MULTILINE))
STYLES = re.compile(r"\x1b\[[\d;]*m")
SHELL_SYNTAX = set("|&;<>$*`(){}#")
NUMBER = r"([-+]?[\d,]*\.?\d+(?:e[-+]?\d+)?)"


class Terminal(StringIO):
    """Where output goes that is to look as on a terminal."""

    def isatty(self) -> bool:
        return True


@dataclass
class Page:
    """What the blocks of a page share; `printed` is the output of those since the last check."""

    stack: ExitStack = field(default_factory=ExitStack)
    printed: str = ""


def begin(namespace: dict[str, Any]) -> None:
    """An empty folder for a page, and nothing that it leaves behind in this process."""
    import torch

    from iqvit.canonical import OPS
    from iqvit.converters import CONVERTERS
    from iqvit.ops import REGISTRY
    from iqvit.passes.normalize_arguments import RULES
    from iqvit.tvm_backend.kernels.isa import ISAS
    from iqvit.tvm_backend.targets import TARGETS

    page = namespace["page"] = Page()
    folder = page.stack.enter_context(tempfile.TemporaryDirectory())
    page.stack.enter_context(chdir(folder))
    for registry in (OPS, CONVERTERS, REGISTRY, RULES, ISAS, TARGETS, os.environ):
        page.stack.enter_context(patch.dict(registry))
    page.stack.callback(forget, folder)
    page.stack.enter_context(patch.object(sys, "path", [folder, *sys.path]))
    page.stack.callback(torch.set_num_threads, torch.get_num_threads())
    os.environ.update(ENVIRONMENT)
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


def forget(folder: str) -> None:
    """Drop the modules that a page wrote: another page may have some of the same names."""
    files = {name: getattr(module, "__file__", None) or "" for name, module in sys.modules.items()}
    for name in [name for name, file in files.items() if file.startswith(folder)]:
        del sys.modules[name]


def end(namespace: dict[str, Any]) -> None:
    """Undo what `begin` did."""
    namespace.pop("page").stack.close()


def parse(document: Document) -> Iterable[Region]:
    """The blocks of a page, with what becomes of each."""
    for region in FENCES(document):
        language, *options = shlex.split(region.lexemes["info"]) or [""]
        told = dict(option.partition("=")[::2] for option in options)
        region.parsed = region.lexemes["source"]
        region.evaluator = evaluator(language, told)
        if region.evaluator is not None:
            yield region


def evaluator(language: str, told: dict[str, str]) -> Callable[[Example], None] | None:
    """What to do with a block; None for one that is only shown."""
    if "norun" in told:
        return None
    if "title" in told:
        return lambda example: write(example, told["title"])
    if language == "sh":
        return lambda example: run_shell(example, int(told.get("exit", 0)))
    known = {"python": run_python, "text": check_printed}
    if language not in known:
        raise ValueError(f"a block of {language!r} {told}: see docs/conftest.py for what there is")
    return known[language]


def write(example: Example, name: str) -> None:
    Path(name).write_text(example.parsed)


def run_python(example: Example) -> None:
    with redirect_stdout(StringIO()) as out:
        PythonEvaluator()(example)
    example.namespace["page"].printed += out.getvalue()


def run_shell(example: Example, wanted: int) -> None:
    lines = example.parsed.replace("\\\n", " ").strip().splitlines()
    if all(line.startswith("iqvit ") and not SHELL_SYNTAX & set(line) for line in lines):
        results = [run_iqvit(shlex.split(line)[1:]) for line in lines]
    else:
        done = subprocess.run(
            ["bash", "-euc", example.parsed],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        results = [(done.returncode, done.stdout)]
    printed = "".join(output for _, output in results)
    example.namespace["page"].printed += printed
    assert results[-1][0] == wanted, f"exit status {results[-1][0]}, not {wanted}:\n{printed}"


def run_iqvit(arguments: list[str]) -> tuple[int, str]:
    from iqvit.cli import main

    # Notes go where the results go, as on a terminal, but progress bars need one.
    both = Terminal()
    errors = StringIO()
    errors.write = both.write
    with redirect_stdout(both), redirect_stderr(errors):
        code = main(arguments)
    return code, both.getvalue()


def check_printed(example: Example) -> None:
    page = example.namespace["page"]
    printed, page.printed = page.printed, ""
    found = re.fullmatch(pattern(example.parsed), "\n".join(plain_lines(printed)))
    shown = f"the page shows:\n{example.parsed}\nprinted was:\n{printed}"
    assert found is not None, shown
    about = [number(text) for text in re.findall(rf"~{NUMBER}", example.parsed)]
    for wanted, text in zip(about, found.groups(), strict=True):
        assert abs(number(text) - wanted) <= TOLERANCE * abs(wanted), (
            f"{text} is not ~{wanted}\n{shown}"
        )


def number(text: str) -> float:
    return float(text.replace(",", ""))


def plain_lines(text: str) -> list[str]:
    """Lines with single spaces and plain letters, without rules of tables and empty ones."""
    lines = (" ".join(line.split()) for line in STYLES.sub("", text).splitlines())
    return [line for line in lines if line.strip("─ ")]


def pattern(text: str) -> str:
    """A regular expression of what a text block stands for; every `~` number is a group."""
    parts = []
    for line in plain_lines(text):
        if line == "...":
            parts.append(r"(?:.*(?:\n|$))*?")
            continue
        escaped = re.sub(r"~" + NUMBER, "\0", line)
        escaped = re.escape(escaped).replace(re.escape("\0"), NUMBER)
        parts.append(escaped.replace(re.escape("..."), ".*?") + r"(?:\n|$)")
    return "".join(parts)


pytest_collect_file = Sybil(parsers=[parse], pattern="*.md", setup=begin, teardown=end).pytest()
