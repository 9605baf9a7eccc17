"""The graph's text: golden, round trips, and what the parser refuses."""

import numpy as np
import pytest

from iqvit.errors import FileFormatError, GraphError, OverflowProofError
from iqvit.intgraph import GraphBuilder, IntGraph
from iqvit.inttype import QParams
from iqvit.ops import Argmax, Input, Linear, Reshape
from iqvit.text import parse_graph, print_graph

GOLDEN = """\
iqvit graph 1
%image: uint8[1,1,2,2] 0..255 = input() {shape=(1, 1, 2, 2)}
%flat: uint8[1,4] 0..255 = reshape(%image) {shape=(1, 4)}
@w: int8[2,4] -3..4
@b: int32[2] 0..7
@m: int32[2] 5..6
%blocks.0_fc1: int16[1,2] -765..1918 = linear(%flat, @w, @b, @m) \
{shift=3, zero_point=0, dtype="int16", lo=-32768, hi=32767} # blocks.0.fc1, timm/mlp.py:42
%best: int32[1] 0..1 = argmax(%blocks.0_fc1) {axis=1, keepdim=0, dtype="int32"} # blocks.0.fc1
return top1=%best, logits=%blocks.0_fc1
"""


def build(origin: str = "blocks.0.fc1", source: str = "timm/mlp.py:42") -> IntGraph:
    builder = GraphBuilder()
    x = builder.add("image", Input((1, 1, 2, 2)), [], qparams=QParams.of(1 / 3))
    flat = builder.add("flat", Reshape((1, 4)), [x])
    w = builder.constant("w", np.array([[4, 3, 2, 1], [0, -1, -3, 4]], np.int8).clip(-3, 4))
    b = builder.constant("b", np.array([7, 0], np.int32))
    m = builder.constant("m", np.array([6, 5], np.int32))
    linear = Linear(3, 0, "int16", -(2**15), 2**15 - 1)
    y = builder.add("blocks.0_fc1", linear, [flat, w, b, m], origin=origin, source=source)
    top = builder.add("best", Argmax(1, 0), [y], origin=origin)
    return builder.finish({"top1": top.name, "logits": y.name}, {"name": "tiny"})


def parse(text: str, **constants: np.ndarray) -> IntGraph:
    return parse_graph(text, {**build().constants, **constants})


def test_golden_text():
    # 1918 is (10 * 255 + 7) * 6 + 4 >> 3, -765 is -4 * 255 * 6 + 4 >> 3
    assert print_graph(build()) == GOLDEN


def test_round_trip():
    graph = build()
    qparams = {"image": QParams.of(1 / 3)}
    again = parse_graph(print_graph(graph), graph.constants, qparams, graph.meta)
    assert again == graph
    assert again.hash == graph.hash
    assert again["image"].qparams is qparams["image"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "plain",
        "with, comma",
        'a "quote"',
        '"quoted"',
        "back\\slash",
        "two\nlines",
        "tab\t and \r\x0b\x0c\x1c\x85\u2028",
        " spaces ",
        "# and } {",
        "Grüße, 視覚 🙂",
        "return x=%y",
    ],
)
def test_origin_and_source_round_trip(text: str):
    for origin, source in ((text, "a.py:3"), ("a.b", text), (text, text), ("", text)):
        graph = build(origin, source)
        again = parse(print_graph(graph))
        assert again.nodes == graph.nodes
        assert again["blocks.0_fc1"].origin == origin
        assert again["blocks.0_fc1"].source == source


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("iqvit graph 1", "iqvit graph 2", 1, "text of version 2; this iqvit reads version 1"),
        ("iqvit graph 1", "module @main", 1, "begins with 'iqvit graph 1'"),
        ("= reshape", "= relu", 3, "no operator is named 'relu'"),
        ("= reshape", "= constant", 3, "no operator is named 'constant'"),
        ("reshape(%image)", "reshape(%picture)", 3, "%picture is not defined before"),
        ("reshape(%image)", "reshape(@image)", 3, "@image has the wrong mark"),
        ("linear(%flat, @w", "linear(%flat, %w", 7, "%w has the wrong mark"),
        ("%flat:", "%image:", 3, "a second node named 'image'"),
        (" {shape=(1, 4)}", "", 3, "reshape has the attributes"),
        ("shape=(1, 4)", "shape=(1, 4), axis=1", 3, "reshape has the attributes"),
        ("shape=(1, 4)", "shape=open('x')", 3, "cannot read the attributes"),
        ("shape=(1, 4)", "shape=(1, , 4)", 3, "cannot read the value"),
        ("shape=(1, 4)", "shape=(1, 4), shape=(1, 4)", 3, "cannot read the attributes"),
        ("uint8[1,4]", "float32[1,4]", 3, "dtype 'float32'"),
        ("uint8[1,4] 0..255", "uint8[1,4] 0..256", 3, "leaves uint8"),
        ("uint8[1,4]", "uint8[1,,4]", 3, "invalid literal"),
        ("int8[2,4] -3..4", "int8[2,4] -3..5", 4, "declared int8[2,4] -3..5, its value is"),
        ("int8[2,4] -3..4", "int8[4,2] -3..4", 4, "declared"),
        ("@w:", "@v:", 4, "the constant 'v' has no value"),
        ("%flat:", "flat:", 3, "cannot read"),
        (" # blocks.0.fc1\n", " # ,\n", 8, "origin and source"),
        ("return top1=%best", "return top1=%worst", 9, "%worst is not defined"),
        ("return top1=%best", "return logits=%best", 9, "two outputs have one name"),
        ("return top1=%best, ", "return top1 ", 9, "cannot read the outputs"),
    ],
)
def test_parser_refuses(old: str, new: str, line: int, message: str):
    text = print_graph(build())
    assert old in text
    with pytest.raises(FileFormatError) as caught:
        parse(text.replace(old, new, 1))
    assert str(caught.value).startswith(f"line {line} of the graph's text: ")
    assert message in str(caught.value)


def test_parser_refuses_ends_that_are_wrong():
    text = print_graph(build())
    cut = text[: text.index("return")]
    with pytest.raises(FileFormatError, match="ends without its outputs"):
        parse(cut)
    with pytest.raises(FileFormatError, match="something after the outputs"):
        parse(text + "%x: int8[1] 0..1 = reshape(%image) {shape=(1,)}")
    with pytest.raises(FileFormatError, match="constants that no line names: spare"):
        parse(text, spare=np.zeros(1, np.int8))
    with pytest.raises(FileFormatError, match="begins with"):
        parse("")


def test_constants_of_other_types_are_refused():
    with pytest.raises(FileFormatError, match=r"line 4.*float32"):
        parse(print_graph(build()), w=np.zeros((2, 4), np.float32))


def test_types_are_proved_again():
    text = print_graph(build())
    with pytest.raises(GraphError, match=r"is typed .* proved"):
        parse(text.replace("-765..1918", "-764..1918"))
    big = {"b": np.array([2**31 - 1, 0], np.int32)}
    with pytest.raises(OverflowProofError, match=r"blocks\.0_fc1 = linear"):
        parse(text.replace("@b: int32[2] 0..7", f"@b: int32[2] 0..{2**31 - 1}"), **big)


def test_attributes_that_no_builder_makes_are_refused():
    text = print_graph(build())
    with pytest.raises(FileFormatError, match="cannot be proved: negative shift"):
        parse(text.replace("shift=3", "shift=-3"))
    with pytest.raises(FileFormatError, match="cannot be proved"):
        parse(text.replace("linear(%flat, @w, @b, @m)", "linear(%flat, @w, @b)"))


def test_names_that_cannot_be_parsed_are_not_printed():
    builder = GraphBuilder()
    x = builder.add("two words", Input((1, 1)), [])
    with pytest.raises(GraphError, match="'two words' is not of letters"):
        print_graph(builder.finish({"out": x.name}))


def test_attributes_that_are_not_plain_are_not_printed():
    builder = GraphBuilder()
    x = builder.add("x", Input((1, 4)), [])
    y = builder.add("y", Reshape((np.int64(4), 1)), [x])
    with pytest.raises(GraphError, match="is not an int"):
        print_graph(builder.finish({"out": y.name}))
