"""Recipes: as TOML and back, what they refuse, and which rule wins."""

import pytest

from iqvit.calibration.recipe import Recipe, Rule, Settings, load_recipe, parse_recipe
from iqvit.errors import RecipeError

FULL = """
seed = 7

[default]
weight_bits = 6
observer = "mse"
margin = 1
bias_correction = false

[operator.gelu]
approximation = "igelu"

[operator.layer_norm]
bits = 16

[node."blocks.0.*"]
weight_bits = 8

[node."blocks.0.attn:attention"]
approximation = "shiftmax"
probability_bits = 16
"""


def test_toml_round_trip():
    recipe = parse_recipe(FULL)
    assert recipe.seed == 7
    assert recipe.default == Settings(
        weight_bits=6, observer="mse", margin=1, bias_correction=False
    )
    assert recipe.operators["gelu"] == {"approximation": "igelu"}
    assert [rule.glob for rule in recipe.rules] == ["blocks.0.*", "blocks.0.attn:attention"]
    assert parse_recipe(recipe.to_toml()) == recipe


def test_the_default_recipe_survives_toml():
    assert parse_recipe(Recipe().to_toml()) == Recipe()
    assert parse_recipe("") == Recipe()


def test_awkward_globs_survive_toml():
    rules = (Rule('a"b', {"bits": 8}), Rule("a\\b\t", {"bits": 16}), Rule("[ab]*", {"alpha": 0.1}))
    recipe = Recipe(rules=rules)
    assert parse_recipe(recipe.to_toml()) == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sede = 1", "unknown key 'sede'"),
        ("[nodes]", "unknown key 'nodes'"),
        ("[default]\nweight_bit = 8", r"\[default\]: unknown key 'weight_bit'"),
        ("[operator.gelu]\nbit = 8", r"\[operator.gelu\]: unknown key 'bit'"),
        ("[operator.gleu]\nbits = 8", r"\[operator.gleu\]: no operator of that name"),
        ('[node."a.*"]\nbit = 8', r"\[node.'a.\*'\]: unknown key 'bit'"),
        ("default = 3", r"\[default\] is not a table"),
        ("operator = 3", r"\[operator\] is not a table"),
        ("[operator]\ngelu = 3", r"\[operator.gelu\] is not a table"),
        ('[node]\n"a.*" = 3', r"\[node.'a.\*'\] is not a table"),
        ("[[node]]\nbits = 8", r"\[node\] is not a table"),
        ("seed = 1.5", "seed = 1.5 is not an integer"),
        ("seed = true", "seed = True is not an integer"),
        ("seed = -1", "seed = -1 is not in 0"),
        ("seed = 99999999999999999999", "is not in 0"),
        ("[default]\nweight_bits = 16", "weight_bits = 16 is none of 2"),
        ("[default]\nweight_bits = 1", "weight_bits = 1 is none of 2"),
        ("[default]\nweight_bits = 8.0", "weight_bits = 8.0 is not of type int"),
        ("[default]\nweight_bits = true", "weight_bits = True is not of type int"),
        ('[default]\nweight_bits = "8"', "weight_bits = '8' is not of type int"),
        ("[default]\nbits = 7", "bits = 7 is none of 0, 8, 9"),
        ("[operator.add]\nbits = 20", r"\[operator.add\]: bits = 20 is none of"),
        ("[operator.gelu]\ninput_bits = 4", r"\[operator.gelu\]: input_bits = 4 is none of"),
        ("[operator.tanh]\ninput_bits = 32", "input_bits = 32 is none of"),
        ("[default]\nprobability_bits = 4", "probability_bits = 4 is none of 0, 8, 16"),
        ("[default]\nfraction_bits = 0", "fraction_bits = 0 is none of 1, 2"),
        ("[default]\nfraction_bits = 9", "fraction_bits = 9 is none of 1, 2"),
        ('[default]\nobserver = "max"', "observer = 'max' is none of 'minmax'"),
        ('[default]\ngranularity = "rows"', "granularity = 'rows' is none of"),
        ('[default]\nweight_granularity = "row"', "weight_granularity = 'row' is none of"),
        ('[default]\nweight_rounding = "up"', "weight_rounding = 'up' is none of"),
        ("[default]\nbias_correction = 1", "bias_correction = 1 is not of type bool"),
        ('[default]\nalpha = "a"', "alpha = 'a' is not of type float"),
        ("[default]\nalpha = 1.5", "alpha = 1.5 is not in -1..1"),
        ("[default]\npercentile = 10", "percentile = 10 is not in 50..100"),
        ("[default]\nheadroom = nan", "headroom = nan is not in"),
        ("[default]\nmargin = inf", "margin = inf is not in"),
        ('[default]\napproximation = "lat"', "no approximation 'lat'"),
        ('[operator.gelu]\napproximation = "shiftmax"', "no approximation 'shiftmax' of gelu"),
        ('[operator.linear]\napproximation = "lut"', "'lut' of linear; it has none"),
        ("[default", "not valid TOML"),
    ],
)
def test_what_does_not_fit_is_refused(text, message):
    with pytest.raises(RecipeError, match=message) as failure:
        parse_recipe(text, "mine.toml")
    assert str(failure.value).startswith("mine.toml: ")


def test_impossible_values_in_python():
    with pytest.raises(RecipeError, match="weight_bits = 16"):
        Settings(weight_bits=16)
    with pytest.raises(RecipeError, match="bits = 17"):
        Recipe(operators={"add": {"bits": 17}})
    with pytest.raises(RecipeError, match="no operator of that name"):
        Recipe(operators={"relu6": {}})
    with pytest.raises(RecipeError, match="unknown key 'width'"):
        Recipe(rules=(Rule("*", {"width": 8}),))
    with pytest.raises(RecipeError, match=r"'a\.\*' is given twice"):
        Recipe(rules=(Rule("a.*", {"bits": 8}), Rule("a.*", {"bits": 16})))


def test_the_more_specific_wins():
    recipe = Recipe(
        Settings(bits=16),
        {"linear": {"bits": 8, "weight_bits": 7}},
        (Rule("blocks.1.mlp.*", {"weight_bits": 4}), Rule("blocks.*", {"weight_bits": 5})),
    )
    assert recipe.settings("head", "conv2d") == Settings(bits=16)
    assert recipe.settings("head", "linear") == Settings(bits=8, weight_bits=7)
    # A node rule over the operator's, which still decides what the rule leaves open.
    assert recipe.settings("blocks.0.mlp.fc1", "linear") == Settings(bits=8, weight_bits=5)
    # More literal characters win, wherever the rule stands.
    assert recipe.settings("blocks.1.mlp.fc1", "linear").weight_bits == 4


def test_of_equally_specific_rules_the_later_wins():
    first, second = Rule("block?.*.fc1", {"bits": 8}), Rule("*locks.?.fc1", {"bits": 16})
    assert first.literal == second.literal
    assert Recipe(rules=(first, second)).settings("blocks.0.fc1", "linear").bits == 16
    assert Recipe(rules=(second, first)).settings("blocks.0.fc1", "linear").bits == 8


def test_a_glob_may_name_the_operator():
    recipe = Recipe(rules=(Rule("blocks.*:gelu", {"bits": 8}), Rule("*:add", {"bits": 16})))
    assert recipe.settings("blocks.3.mlp.act", "gelu").bits == 8
    assert recipe.settings("blocks.3.mlp.act", "linear").bits == 0
    assert recipe.settings("blocks.3", "add").bits == 16


def test_globs_tell_cases_apart_and_match_whole_paths():
    rule = Rule("blocks.1", {})
    assert rule.matches("blocks.1", "add")
    assert not rule.matches("Blocks.1", "add")
    assert not rule.matches("blocks.11", "add")
    assert not rule.matches("blocks.1.mlp", "add")


def test_globs_that_match_nothing_are_found():
    recipe = Recipe(rules=(Rule("blocks.*", {}), Rule("block.*", {}), Rule("*:silu", {})))
    nodes = [("blocks.0.mlp", "gelu"), ("head", "linear")]
    assert recipe.unmatched(nodes) == ["block.*", "*:silu"]


def test_an_approximation_of_another_operator_is_refused_where_it_meets_it():
    recipe = Recipe(rules=(Rule("blocks.0.mlp.*", {"approximation": "igelu"}),))
    assert recipe.settings("blocks.0.mlp.act", "gelu").approximation == "igelu"
    with pytest.raises(RecipeError, match="'igelu' of linear; it has none"):
        recipe.settings("blocks.0.mlp.fc1", "linear")


def test_files(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(FULL, encoding="utf-8")
    assert load_recipe(path) == parse_recipe(FULL)
    assert load_recipe(str(path)) == load_recipe(path)


@pytest.mark.parametrize("kind", ["missing", "folder", "binary"])
def test_unreadable_files_are_named(tmp_path, kind):
    path = tmp_path / "recipe.toml"
    if kind == "folder":
        path.mkdir()
    elif kind == "binary":
        path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match=r"cannot read the recipe .*recipe\.toml"):
        load_recipe(path)
