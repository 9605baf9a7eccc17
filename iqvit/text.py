"""IntGraph as text: printed and parsed, one line a node.

    iqvit graph 1
    %image: uint8[1,3,224,224] 0..255 = input() {shape=(1, 3, 224, 224)}
    @w: int8[192,768] -127..127
    %fc1: int16[1,768] -31022..32767 = linear(%x, @w, @b, @m) {shift=38, ...} # origin, source
    return logits=%head

`@` marks constants, whose values are kept elsewhere, `%` everything else. Attributes are integers,
strings and tuples of integers. What follows `#` is the origin and the source of the node.
"""

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NoReturn

import numpy as np

from iqvit.errors import FileFormatError, GraphError
from iqvit.intgraph import IntGraph, Node
from iqvit.inttype import IntType, QParams, constant_type
from iqvit.ops import REGISTRY
from iqvit.ops.base import Op
from iqvit.ops.constant import Constant

VERSION = 1
HEADER = "iqvit graph"

NAME = r"[\w.]+"
STRING = r'"(?:[^"\\]|\\.)*"'
VALUE = rf"(?:{STRING}|\([-\d, ]*\)|-?\d+)"
COMMENT = r"(?: # (?P<comment>.+))?"
TYPE = r"(?P<dtype>\w+)\[(?P<shape>[\d,]*)\] (?P<lo>-?\d+)\.\.(?P<hi>-?\d+)"
CONSTANT_LINE = re.compile(rf"@(?P<name>{NAME}): {TYPE}{COMMENT}")
NODE_LINE = re.compile(
    rf"%(?P<name>{NAME}): {TYPE} = (?P<op>\w+)\((?P<inputs>[\w.@%, ]*)\)"
    rf'(?: \{{(?P<attributes>(?:{STRING}|[^"{{}}])*)\}})?{COMMENT}'
)
RETURN_LINE = re.compile(rf"return (?P<outputs>{NAME}=[%@]{NAME}(?:, {NAME}=[%@]{NAME})*)")
ATTRIBUTE = re.compile(rf"(?P<key>\w+)=(?P<value>{VALUE})(?:, |$)")


def print_graph(graph: IntGraph, comments: bool = True) -> str:
    """The graph as text, without the values of its constants, scales and meta data.

    `comments` are the origin and source of the nodes.
    Raises `GraphError` for a node or output whose name the text could not be parsed back from.
    """
    for name in (*(node.name for node in graph), *graph.outputs):
        if not re.fullmatch(NAME, name):
            raise GraphError(f"the name {name!r} is not of letters, digits, _ and .")
    lines = [f"{HEADER} {VERSION}", *(_print_node(graph, node, comments) for node in graph)]
    outputs = ", ".join(f"{name}={_reference(graph, n)}" for name, n in graph.outputs.items())
    return "\n".join([*lines, f"return {outputs}", ""])


def _reference(graph: IntGraph, name: str) -> str:
    return f"@{name}" if isinstance(graph[name].op, Constant) else f"%{name}"


def _print_node(graph: IntGraph, node: Node, comments: bool) -> str:
    line = f"{_reference(graph, node.name)}: {node.type}"
    if not isinstance(node.op, Constant):
        inputs = ", ".join(_reference(graph, name) for name in node.inputs)
        line += f" = {node.op.NAME}({inputs})"
    attributes = ", ".join(f"{k}={_print_value(v)}" for k, v in node.op.attributes().items())
    if attributes:
        line += f" {{{attributes}}}"
    if comments and (node.origin or node.source):
        origin = node.origin if re.fullmatch(r'[^\s",]+', node.origin) else _quote(node.origin)
        plain = node.source.isprintable() and node.source.strip() == node.source
        plain = plain and not node.source.startswith('"')
        source = node.source if plain else _quote(node.source)
        line += f" # {origin}, {source}" if source else f" # {origin}"
    return line


def _print_value(value: int | str | tuple[int, ...]) -> str:
    if type(value) is str:
        return _quote(value)
    integers = value if type(value) is tuple else (value,)
    if any(type(item) is not int for item in integers):
        raise GraphError(f"the attribute {value!r} is not an int, a str or a tuple of ints")
    return repr(value)


def _quote(value: str) -> str:
    """A string literal on one line, equal in JSON and in Python."""
    return json.dumps(value, ensure_ascii=False)


def parse_graph(
    text: str,
    constants: Mapping[str, np.ndarray],
    qparams: Mapping[str, QParams] | None = None,
    meta: Mapping[str, Any] | None = None,
) -> IntGraph:
    """The graph of a text, its constants by name, what its integers stand for and its meta data.

    The graph is proved anew. Raises `FileFormatError` with the line number for text that is not a
    graph or does not fit the constants, `GraphError` for a graph whose proof fails.
    """
    return _Parser(text, constants, qparams or {}).parse(meta or {})


class _Parser:
    def __init__(
        self, text: str, constants: Mapping[str, np.ndarray], qparams: Mapping[str, QParams]
    ) -> None:
        self.lines = text.split("\n")
        self.number = 0
        self.constants = constants
        self.qparams = qparams
        self.nodes: dict[str, Node] = {}

    def fail(self, what: str) -> NoReturn:
        raise FileFormatError(f"line {self.number} of the graph's text: {what}")

    def parse(self, meta: Mapping[str, Any]) -> IntGraph:
        outputs: dict[str, str] | None = None
        for number, line in enumerate(self.lines, 1):
            self.number = number
            if number == 1:
                self.header(line)
            elif line.strip() == "":
                continue
            elif outputs is not None:
                self.fail("there is something after the outputs")
            elif line.startswith("return "):
                outputs = self.outputs(line)
            else:
                self.node(line)
        if outputs is None:
            self.fail("the text ends without its outputs")
        for what, names in (("constants", self.constants), ("scales", self.qparams)):
            spare = sorted(set(names) - set(self.nodes))
            if spare:
                self.fail(f"{what} that no line names: {', '.join(spare)}")
        return self.prove(outputs, meta)

    def prove(self, outputs: dict[str, str], meta: Mapping[str, Any]) -> IntGraph:
        try:
            return IntGraph(tuple(self.nodes.values()), outputs, meta)
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            # Attributes or operands that no builder makes: a negative shift, an input too few.
            raise FileFormatError(f"the graph cannot be proved: {error}") from error

    def header(self, line: str) -> None:
        match = re.fullmatch(rf"{HEADER} (\d+)", line)
        if match is None:
            self.fail(f"a graph begins with '{HEADER} {VERSION}', not {line[:40]!r}")
        if int(match[1]) != VERSION:
            self.fail(f"text of version {match[1]}; this iqvit reads version {VERSION}")

    def outputs(self, line: str) -> dict[str, str]:
        match = RETURN_LINE.fullmatch(line)
        if match is None:
            self.fail(f"cannot read the outputs {line[:80]!r}")
        named = [item.split("=") for item in match["outputs"].split(", ")]
        outputs = {name: self.reference(reference) for name, reference in named}
        if len(outputs) != len(named):
            self.fail("two outputs have one name")
        return outputs

    def node(self, line: str) -> None:
        constant = CONSTANT_LINE.fullmatch(line)
        match = constant or NODE_LINE.fullmatch(line)
        if match is None:
            self.fail(f"cannot read {line[:80]!r}")
        name = match["name"]
        if name in self.nodes:
            self.fail(f"a second node named {name!r}")
        kind = self.type(match)
        if constant is not None:
            op, inputs, kind = Constant(), (), self.known(name, kind)
        else:
            op = self.op(match["op"], match["attributes"] or "")
            listed = match["inputs"].split(", ") if match["inputs"] else []
            inputs = tuple(self.reference(item) for item in listed)
        origin, source = self.comment(match["comment"] or "")
        self.nodes[name] = Node(name, op, inputs, kind, origin, source, self.qparams.get(name))

    def type(self, match: re.Match[str]) -> IntType:
        try:
            shape = tuple(int(d) for d in match["shape"].split(",")) if match["shape"] else ()
            return IntType(match["dtype"], shape, int(match["lo"]), int(match["hi"]))
        except (GraphError, ValueError) as error:
            self.fail(str(error))

    def known(self, name: str, declared: IntType) -> IntType:
        if name not in self.constants:
            self.fail(f"the constant {name!r} has no value")
        try:
            actual = constant_type(self.constants[name])
        except GraphError as error:
            self.fail(f"the constant {name!r}: {error}")
        if actual != declared:
            self.fail(f"the constant {name!r} is declared {declared}, its value is {actual}")
        return actual

    def reference(self, item: str) -> str:
        mark, name = item[:1], item[1:]
        if name not in self.nodes:
            self.fail(f"{item} is not defined before it is used")
        if (mark == "@") != isinstance(self.nodes[name].op, Constant):
            self.fail(f"{item} has the wrong mark: @ is for constants, % for other nodes")
        return name

    def op(self, name: str, text: str) -> Op:
        if name not in REGISTRY or name == Constant.NAME:
            self.fail(f"no operator is named {name!r}")
        attributes: dict[str, Any] = {}
        place = 0
        while place < len(text):
            match = ATTRIBUTE.match(text, place)
            if match is None or match["key"] in attributes:
                self.fail(f"cannot read the attributes from {text[place : place + 40]!r}")
            attributes[match["key"]] = self.value(match["value"])
            place = match.end()
        wanted = [field.name for field in fields(REGISTRY[name])]
        if list(attributes) != wanted:
            self.fail(f"{name} has the attributes {wanted}, not {list(attributes)}")
        return REGISTRY[name](**attributes)

    def value(self, text: str) -> int | str | tuple[int, ...]:
        try:
            return ast.literal_eval(text)
        except (SyntaxError, ValueError) as error:
            self.fail(f"cannot read the value {text[:40]!r}: {error}")

    def comment(self, text: str) -> tuple[str, str]:
        match = re.fullmatch(rf"(?P<origin>{STRING}|[^,]+)(?:, (?P<source>.+))?", text)
        if match is None and text:
            self.fail(f"cannot read the origin and source {text[:40]!r}")
        if match is None:
            return "", ""
        origin, source = match["origin"], match["source"] or ""
        return self.plain(origin), self.plain(source)

    def plain(self, text: str) -> str:
        return str(self.value(text)) if text.startswith('"') else text
