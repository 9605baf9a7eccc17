"""Which integers every value gets: who reads it, how wide it is, which nodes share one form."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from iqvit.calibration.recipe import APPROXIMATIONS, Recipe, Settings
from iqvit.canonical import CanonicalModel, arguments, is_constant, op_of, shape
from iqvit.errors import GraphError, RecipeError, node_message

# Operators that only move values: their output has the integers of their input.
LAYOUT = frozenset({"reshape", "permute", "slice", "select", "cat"})
# Operators that keep the scale of their input but change values.
KEEPS_SCALE = frozenset(
    {
        *("relu", "clamp", "amax", "max_pool2d", "getitem", "take_rows"),
        *("upsample_nearest", "upsample_bilinear"),
    }
)
PRODUCTS = frozenset({"linear", "conv2d", "matmul", "attention"})
# What the residual stream is made by and read by.
RESIDUAL_MAKERS = frozenset({"linear", "conv2d", "add"}) | LAYOUT
RESIDUAL_READERS = frozenset({"add", "layer_norm"}) | LAYOUT
RESIDUAL_BITS = 20
# What can saturate at fewer bits than its type has.
ANY_WIDTH = frozenset({"linear", "conv2d", "add", "sigmoid", "tanh"})
# Of "deformable_attention" the values alone are operands of a product.
SAMPLES = frozenset({"deformable_attention", "grid_sample"})
# Operators whose output has a known range, which is then its 16-bit range whatever images show.
BOUNDED = {"sigmoid": 1.0, "tanh": 1.0}
# A sigmoid is 0 or 1 beyond this to 23 bits: a logit that only sigmoids read saturates there.
SIGMOID_REACH = 16.0
# Published forms of 8-bit values.
FORMS_OF_8 = frozenset({"shiftgelu", "lambda_shiftgelu", "shiftmax"})
# Published forms of values with zero point 0.
SYMMETRIC_FORMS = frozenset({"igelu", "shiftgelu", "lambda_shiftgelu"})
# Forms of 8-bit values whose range is chosen for the error of GELU's output.
BOUNDED_FORMS = frozenset({"lambda_shiftgelu"})
DEFAULT_APPROXIMATION = {
    "gelu": "lut",
    "silu": "lut",
    "sigmoid": "lut",
    "tanh": "lut",
    "softmax": "exp2",
    "attention": "exp2",
    "layer_norm": "exact",
}


@dataclass(frozen=True)
class Plan:
    """`settings` of every call node, the `group` that shares one integer form with it (the name of
    its first member), and by group whether somebody reads 16 bits, whether somebody reads 8 bits
    whatever the others read, and the bits of what has neither 8 nor 16 of them (0 elsewhere): the
    residual stream, and what the recipe says."""

    settings: dict[str, Settings]
    group: dict[str, str]
    wide: dict[str, bool]
    narrow: dict[str, bool]
    bits: dict[str, int]

    def approximation(self, node: fx.Node) -> str:
        """The approximation of a non-linear node, "" for others."""
        chosen = self.settings[node.name].approximation
        return chosen or DEFAULT_APPROXIMATION.get(op_of(node).name, "")

    def probability_bits(self, node: fx.Node) -> int:
        """The width of the probabilities of an attention."""
        usual = 16 if op_of(node).name == "deformable_attention" else 8
        return self.settings[node.name].probability_bits or usual


def values(model: CanonicalModel) -> Iterator[fx.Node]:
    """The nodes that compute, in order, the image first."""
    for node in model.module.graph.nodes:
        if node.op == "placeholder" or (node.op == "call_function" and not _is_index(node)):
            yield node


def _is_index(node: fx.Node) -> bool:
    """Whether a node gives positions, whose integers mean themselves (topk: beside its values)."""
    return op_of(node).name == "topk" or not node.meta["val"].is_floating_point()


def make_plan(model: CanonicalModel, recipe: Recipe) -> Plan:
    """Settings, groups and widths; raises `RecipeError` for a glob that matches nothing."""
    _check_image(model)
    calls = [node for node in model.module.graph.nodes if node.op == "call_function"]
    named = [(node.meta["source"].module_path, op_of(node).name) for node in calls]
    lost = recipe.unmatched(named)
    if lost:
        raise RecipeError(f"no node matches {', '.join(map(repr, lost))}; see `iqvit inspect`")
    settings = {n.name: recipe.settings(*pair) for n, pair in zip(calls, named, strict=True)}
    for node in calls:
        _check(node, settings[node.name])
    group = _groups(model)
    wide: dict[str, bool] = {}
    narrow: dict[str, bool] = {}
    for node in values(model):
        key = group[node.name]
        readers = [user for user in node.users if user.op == "call_function"]
        reads = [_reads_wide(user, settings[user.name], node) for user in readers]
        read_by_output = any(user.op == "output" for user in node.users)
        wide[key] = wide.get(key, False) or any(reads) or read_by_output
        reads = [reads_narrow(user, settings[user.name], node) for user in readers]
        narrow[key] = narrow.get(key, False) or any(reads)
    bits = _residual_bits(model, group, settings)
    for node in calls:
        forced = settings[node.name].bits
        if forced and node.name in group and op_of(node).name not in LAYOUT:
            wide[group[node.name]] = forced > 8
            bits[group[node.name]] = forced if 8 < forced < 16 else 0
    return Plan(settings, group, wide, narrow, bits)


def _residual_bits(
    model: CanonicalModel, group: dict[str, str], settings: dict[str, Settings]
) -> dict[str, int]:
    """Bits of the groups that form the residual stream: made by sums and products, read by sums and
    LayerNorms only.

    A few channels of a ViT's residual stream are a hundred times larger than the rest, so 16 bits
    for all leave too few for the others. 20 bits cost nothing in int32 registers, and a LayerNorm
    over up to 1024 channels still sums them in int32.
    """
    bits: dict[str, int] = {}
    refused: set[str] = set()
    for node in values(model):
        key = group[node.name]
        made = op_of(node).name if node.op == "call_function" else "image"
        readers = {"output" if u.op == "output" else op_of(u).name for u in node.users}
        forced = made in ("linear", "conv2d", "add") and settings[node.name].bits
        if made not in RESIDUAL_MAKERS or not readers <= RESIDUAL_READERS or forced:
            refused.add(key)
        norms = [u for u in node.users if u.op != "output" and op_of(u).name == "layer_norm"]
        most = [
            16
            if settings[norm.name].approximation == "ilayernorm"
            else 30 - math.ceil(math.log2(shape(norm)[-1]))
            for norm in norms
        ]
        bits[key] = min(bits.get(key, RESIDUAL_BITS), *most, RESIDUAL_BITS)
    return {key: 0 if key in refused or value <= 16 else value for key, value in bits.items()}


def _check(node: fx.Node, settings: Settings) -> None:
    operator = op_of(node).name
    chosen = settings.approximation
    where = f"{node.meta['source']} ({operator})"
    if chosen and operator in APPROXIMATIONS and chosen not in APPROXIMATIONS[operator]:
        names = ", ".join(APPROXIMATIONS[operator])
        raise RecipeError(f"{where}: no approximation {chosen!r}; it has {names}")
    if chosen in FORMS_OF_8 and operator != "attention" and settings.input_bits == 16:
        raise RecipeError(f"{where}: impossible width: {chosen} reads 8 bits, not 16")
    if 8 < settings.bits < 16 and operator not in ANY_WIDTH | LAYOUT:
        names = ", ".join(sorted(ANY_WIDTH))
        raise RecipeError(f"{where}: bits = {settings.bits} is for {names} only; take 8 or 16")
    if chosen == "ilayernorm" and settings.input_bits == 8:
        raise RecipeError(f"{where}: impossible width: {chosen} reads 16 bits, not 8")


def _reads_wide(user: fx.Node, settings: Settings, source: fx.Node) -> bool:
    """Whether a reader wants 16 bits of its own accord (layout operators ask for their readers)."""
    operator = op_of(user).name
    if operator in SAMPLES:
        return user.args[0] is not source
    if operator == "linear":
        return settings.granularity == "row"
    if operator in PRODUCTS or operator in LAYOUT or operator in KEEPS_SCALE:
        return False
    if settings.input_bits:
        return settings.input_bits == 16
    return settings.approximation not in FORMS_OF_8


def reads_narrow(user: fx.Node, settings: Settings, source: fx.Node) -> bool:
    """Whether a reader takes 8 bits of a value that is wider for others."""
    operator = op_of(user).name
    if operator == "deformable_attention":
        return user.args[0] is source
    if operator == "linear":
        return settings.granularity != "row"
    if operator in ("gelu", "softmax"):
        return settings.approximation in FORMS_OF_8
    return operator in PRODUCTS


def reads_symmetric(user: fx.Node, settings: Settings, source: fx.Node) -> bool:
    """Whether a reader wants zero point 0 of an 8-bit value."""
    operator = op_of(user).name
    if operator == "deformable_attention":
        return user.args[0] is source
    if operator == "gelu":
        return settings.approximation in SYMMETRIC_FORMS
    return operator in ("attention", "matmul", "l2_normalize")


def read_bounded(plan: Plan, node: fx.Node) -> bool:
    """Whether all that read the value clip it at a bound of their own: nobody else loses by it."""
    readers = [user for user in node.users if user.op == "call_function"]
    return bool(readers) and all(plan.approximation(u) in BOUNDED_FORMS for u in readers)


def read_by_relu(node: fx.Node) -> bool:
    """Whether nothing but ReLUs read a value, which may then saturate at 0 before them."""
    readers = [u.op == "call_function" and op_of(u).name == "relu" for u in node.users]
    return bool(readers) and all(readers)


def known_range(nodes: list[fx.Node]) -> float | None:
    """The largest absolute value that a group of nodes of one form needs to hold, where operators
    say it: those that make the values, or sigmoids if nothing else reads them."""
    shared = LAYOUT | KEEPS_SCALE
    makers = {op_of(n).name for n in nodes if n.op == "call_function"} - shared
    if makers and makers <= BOUNDED.keys():
        return max(BOUNDED[maker] for maker in makers)
    free = [node for node in nodes if not _is_bounded(node)]
    readers = {user for node in free for user in node.users} - set(nodes)
    sigmoids = [user for user in readers if user.op != "output" and op_of(user).name == "sigmoid"]
    return SIGMOID_REACH if sigmoids and len(sigmoids) == len(readers) else None


def _is_bounded(node: fx.Node) -> bool:
    """Whether a node clamps to less than where logits saturate, so that anybody may read it."""
    if node.op != "call_function" or op_of(node).name != "clamp":
        return False
    return max(abs(arguments(node)["lo"]), abs(arguments(node)["hi"])) <= SIGMOID_REACH


def _check_image(model: CanonicalModel) -> None:
    """Channels of several means or stds have a scale each, which only convolutions take in."""
    if len(set(model.mean)) == 1 and len(set(model.std)) == 1:
        return
    pending = [node for node in model.module.graph.nodes if node.op == "placeholder"]
    for user in (user for node in pending for user in node.users):
        if user.op == "output" or op_of(user).name == "conv2d":
            continue
        kept = op_of(user).name in ("max_pool2d", "upsample_nearest")
        kept = kept or (op_of(user).name == "slice" and arguments(user)["dim"] >= 2)
        if not kept:
            what = f"GraphError: {op_of(user).name} reads the image, whose channels differ in scale"
            remedy = "give all channels one mean and std, or begin with a convolution"
            raise GraphError(node_message(what, user.name, str(user.meta["source"]), remedy))
        pending.append(user)


def _groups(model: CanonicalModel) -> dict[str, str]:
    parent: dict[str, str] = {}

    def find(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    for node in values(model):
        parent[node.name] = node.name
        operator = op_of(node).name if node.op == "call_function" else ""
        if operator not in LAYOUT and operator not in KEEPS_SCALE:
            continue
        sources = node.all_input_nodes
        if operator == "getitem":  # the values of a topk are those of what it reads
            sources = sources[0].all_input_nodes
        if operator == "take_rows":  # its indices have no form
            sources = sources[:1]
        for source in sources:
            if not is_constant(source):
                parent[find(node.name)] = find(source.name)
    return {name: find(name) for name in parent}


def producer(node: fx.Node) -> fx.Node:
    """The node that computed a value, behind the layout operators."""
    while node.op == "call_function" and op_of(node).name in LAYOUT - {"cat"}:
        node = node.all_input_nodes[0]
    return node


def one_sided(node: fx.Node, plan: Plan) -> bool:
    """Whether a value has a lower bound near 0: all levels then go to the other side."""
    made = producer(node)
    if made.op != "call_function":
        return False
    operator = op_of(made).name
    return operator == "relu" or (
        operator in ("gelu", "silu") and plan.approximation(made) == "lut"
    )


def equalisable(model: CanonicalModel, plan: Plan, node: fx.Node) -> list[fx.Node]:
    """The linears that read a LayerNorm or GELU, if nothing else does and the last axis is kept.

    Only then may the value have a scale per channel: it folds into the columns of their weights.
    """
    operator = op_of(node).name
    if operator not in ("layer_norm", "gelu", "silu"):
        return []
    linears: list[fx.Node] = []
    pending = [node]
    while pending:
        current = pending.pop()
        for user in current.users:
            if user.op != "call_function":
                return []
            reader = op_of(user).name
            if reader == "linear" and user.args[0] is current:
                linears.append(user)
            elif reader in ("slice", "select") and _keeps_last(user):
                pending.append(user)
            else:
                return []
    return linears


def _keeps_last(node: fx.Node) -> bool:
    rank = len(node.args[0].meta["val"].shape)  # type: ignore[union-attr]
    return arguments(node)["dim"] < rank - 1
