"""The recipe: how every node is quantised, as a frozen dataclass and as TOML."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from iqvit.errors import RecipeError
from iqvit.ops.taps import FRACTIONS

OBSERVERS = ("minmax", "percentile", "mse", "entropy")
APPROXIMATIONS: dict[str, tuple[str, ...]] = {
    "gelu": ("lut", "igelu", "shiftgelu", "lambda_shiftgelu"),
    "silu": ("lut",),
    "sigmoid": ("lut",),
    "tanh": ("lut",),
    "softmax": ("exp2", "isoftmax", "shiftmax"),
    "attention": ("exp2", "isoftmax", "shiftmax"),
    "layer_norm": ("exact", "ilayernorm"),
}


@dataclass(frozen=True)
class Settings:
    """How one node is quantised; the fields are the keys of a recipe's tables.

    Raises `RecipeError` for a value that is not among those allowed.
    """

    weight_bits: int = 8
    """2..8: the width of the weights, which are stored as int8, symmetric."""
    weight_granularity: str = "channel"
    """A scale per output channel ("channel") or one for all ("tensor")."""
    weight_rounding: str = "gptq"
    """To the "nearest", or "gptq": errors move to weights that are not rounded yet."""
    bits: int = 0
    """Of the output: 0 (8 for what matrix products read, 20 for the residual stream, 16 for the
    rest), 8 or 16; also 9..15 of a linear, convolution, sum, sigmoid or tanh."""
    input_bits: int = 0
    """What a non-linear operator reads: 0 (the operator's usual width), 8 or 16."""
    granularity: str = "row"
    """How a linear scales its 8-bit input. "row": every token by its own largest value, at run
    time, in integers; "channel": a fixed scale per channel where a LayerNorm or GELU that only
    linears read makes it; "tensor": one scale."""
    alpha: float = -1.0
    """0..1: how much of the spread of a LayerNorm's or GELU's channels moves into the weights that
    read it (equalisation); -1 searches it per node for the smallest error of the linears'
    outputs."""
    observer: str = "minmax"
    """Finds the range of 8-bit values: "minmax", "percentile", "mse" or "entropy"."""
    percentile: float = 99.99
    """Percent of the values that the percentile observer keeps, 50..100."""
    headroom: float = 1.5
    """16- and 20-bit ranges are this many times the largest value seen, 1..64."""
    margin: float = 1.0
    """8-bit min-max ranges are this many times the range seen, 0.1..4."""
    approximation: str = ""
    """The best measured (""), or a name that `APPROXIMATIONS` has for the operator."""
    probability_bits: int = 0
    """Of unnormalised probabilities: 0 (8 in attention, 16 for the few samples of deformable
    attention), 8 or 16."""
    fraction_bits: int = 8
    """1..8: of the places between cells that bilinear sampling reads."""
    bias_correction: bool = True
    """Whether biases make up for the mean error of the rounding."""

    def __post_init__(self) -> None:
        _one_of("weight_bits", self.weight_bits, tuple(range(2, 9)))
        _one_of("weight_granularity", self.weight_granularity, ("channel", "tensor"))
        _one_of("weight_rounding", self.weight_rounding, ("nearest", "gptq"))
        _one_of("bits", self.bits, (0, *range(8, 17)))
        _one_of("input_bits", self.input_bits, (0, 8, 16))
        _one_of("granularity", self.granularity, ("row", "channel", "tensor"))
        _one_of("observer", self.observer, OBSERVERS)
        _one_of("probability_bits", self.probability_bits, (0, 8, 16))
        _one_of("fraction_bits", self.fraction_bits, tuple(FRACTIONS["bilinear"]))
        _within("alpha", self.alpha, -1.0, 1.0)
        _within("percentile", self.percentile, 50.0, 100.0)
        _within("headroom", self.headroom, 1.0, 64.0)
        _within("margin", self.margin, 0.1, 4.0)


def _one_of(key: str, value: object, allowed: tuple[Any, ...]) -> None:
    if value not in allowed:
        raise RecipeError(f"{key} = {value!r} is none of {', '.join(map(repr, allowed))}")


def _within(key: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise RecipeError(f"{key} = {value!r} is not in {least:g}..{most:g}")


@dataclass(frozen=True)
class Rule:
    """Settings for the nodes whose module path (or `path:operator`) matches a glob."""

    glob: str
    settings: Mapping[str, Any]

    @property
    def literal(self) -> int:
        """Characters that are no wildcard: the measure of how specific a glob is."""
        return sum(c not in "*?[]" for c in self.glob)

    def matches(self, path: str, operator: str) -> bool:
        """Whether the rule speaks of a node."""
        return fnmatchcase(path, self.glob) or fnmatchcase(f"{path}:{operator}", self.glob)


@dataclass(frozen=True)
class Recipe:
    """All settings: `default`, then per operator class, then per node by glob.

    The more specific always wins: a node rule over an operator rule over the default; among node
    rules the one with more literal characters, and of equals the later one. `seed` decides every
    random choice of calibration. Raises `RecipeError` for unknown keys and impossible values.
    """

    default: Settings = field(default_factory=Settings)
    operators: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        from iqvit.canonical import OPS

        known = {op.name for op in OPS.values()}
        for name, values in self.operators.items():
            if name not in known:
                raise RecipeError(
                    f"[operator.{name}]: no operator of that name; there are "
                    f"{', '.join(sorted(known))}"
                )
            _merge(self.default, values, f"[operator.{name}]", name)
        seen: set[str] = set()
        for rule in self.rules:
            _merge(self.default, rule.settings, f"[node.{rule.glob!r}]", None)
            if rule.glob in seen:
                raise RecipeError(f"the rule for {rule.glob!r} is given twice")
            seen.add(rule.glob)
        if not 0 <= self.seed < 1 << 63:
            raise RecipeError(f"seed = {self.seed} is not in 0..2**63 - 1")

    def settings(self, path: str, operator: str) -> Settings:
        """The settings of the node at a module path."""
        merged = _merge(
            self.default, self.operators.get(operator, {}), f"[operator.{operator}]", operator
        )
        matching = [rule for rule in self.rules if rule.matches(path, operator)]
        for rule in sorted(matching, key=lambda rule: rule.literal):
            merged = _merge(merged, rule.settings, f"[node.{rule.glob!r}]", operator)
        return merged

    def unmatched(self, nodes: list[tuple[str, str]]) -> list[str]:
        """Globs that match none of the (module path, operator) pairs: most often a slip."""
        return [r.glob for r in self.rules if not any(r.matches(*node) for node in nodes)]

    def to_toml(self) -> str:
        """The recipe as TOML that `parse_recipe` reads back."""
        lines = [f"seed = {self.seed}", "", "[default]", *_toml(asdict(self.default))]
        for name, values in self.operators.items():
            lines += ["", f"[operator.{name}]", *_toml(values)]
        for rule in self.rules:
            lines += ["", f"[node.{_quoted(rule.glob)}]", *_toml(rule.settings)]
        return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A TOML basic string; JSON's escapes are a subset of TOML's, but for the delete character."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")


def _toml(values: Mapping[str, Any]) -> list[str]:
    def literal(value: Any) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        return _quoted(value) if isinstance(value, str) else repr(value)

    return [f"{key} = {literal(value)}" for key, value in values.items()]


def _merge(base: Settings, values: Mapping[str, Any], where: str, operator: str | None) -> Settings:
    if not isinstance(values, Mapping):
        raise RecipeError(f"{where} is not a table")
    known = {f.name: f.type for f in fields(Settings)}
    for key, value in values.items():
        if key not in known:
            raise RecipeError(f"{where}: unknown key {key!r}; keys are {', '.join(known)}")
        wanted = type(getattr(Settings(), key))
        fits = isinstance(value, wanted) or (wanted is float and type(value) is int)
        if not fits or (isinstance(value, bool) and wanted is not bool):
            raise RecipeError(f"{where}: {key} = {value!r} is not of type {wanted.__name__}")
    _check_approximation(values.get("approximation", ""), where, operator)
    try:
        return replace(base, **values)
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from error


def _check_approximation(name: str, where: str, operator: str | None) -> None:
    """Raise unless the operator (None: any of them) has the approximation."""
    if not name:
        return
    if operator is None:
        every = sorted({form for forms in APPROXIMATIONS.values() for form in forms})
        if name not in every:
            raise RecipeError(f"{where}: no approximation {name!r}; there are {', '.join(every)}")
    elif name not in APPROXIMATIONS.get(operator, ()):
        names = ", ".join(APPROXIMATIONS.get(operator, ())) or "none"
        raise RecipeError(f"{where}: no approximation {name!r} of {operator}; it has {names}")


def parse_recipe(text: str, where: str = "recipe") -> Recipe:
    """A recipe from TOML text; raises `RecipeError` naming `where` and what is wrong."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{where}: not valid TOML: {error}") from error
    unknown = sorted(set(data) - {"seed", "default", "operator", "node"})
    if unknown:
        raise RecipeError(
            f"{where}: unknown key {unknown[0]!r}; a recipe has seed, [default], "
            '[operator.NAME] and [node."GLOB"]'
        )
    seed = data.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise RecipeError(f"{where}: seed = {seed!r} is not an integer")
    for table in ("default", "operator", "node"):
        if not isinstance(data.get(table, {}), dict):
            raise RecipeError(f"{where}: [{table}] is not a table")
    try:
        default = _merge(Settings(), data.get("default", {}), "[default]", None)
        rules = tuple(Rule(glob, values) for glob, values in data.get("node", {}).items())
        return Recipe(default, data.get("operator", {}), rules, seed)
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from error


def load_recipe(path: Path) -> Recipe:
    """A recipe from a TOML file; `RecipeError` where it cannot be read or says what cannot be."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read the recipe {path}: {error}") from error
    return parse_recipe(text, str(path))
