"""y = transpose(x, 1, -1)  ->  y = permute(x, [0, 3, 2, 1])"""

from torch import fx

from iqvit.canonical import aten, shape
from iqvit.passes.editing import (
    calls,
    non_negative,
    operands,
    packet_of,
    replace,
    schema_arguments,
)

SWAPS = (aten.transpose, aten.swapaxes, aten.swapdims)
LAST_TWO = (aten.t, aten.mT, aten.adjoint)
MOVES = (aten.movedim, aten.moveaxis)


def lower_transposes(module: fx.GraphModule) -> None:
    """Write every operator that reorders dimensions as a permute of non-negative dimensions."""
    for node in calls(module, aten.permute, aten.numpy_T, *SWAPS, *LAST_TWO, *MOVES):
        replace(node, aten.permute.default, operands(node)[0], _dims(node))


def _dims(node: fx.Node) -> list[int]:
    rank = len(shape(node))
    dims = list(range(rank))
    packet = packet_of(node)
    values = list(schema_arguments(node).values())[1:]
    if packet is aten.permute:
        return [non_negative(dim, rank) for dim in values[0]]
    if packet is aten.numpy_T:
        return dims[::-1]
    if packet in MOVES:
        return _moved(dims, values[0], values[1])
    first, second = values if packet in SWAPS else (-2, -1)
    if rank > 1:
        dims[first], dims[second] = dims[second], dims[first]
    return dims


def _moved(dims: list[int], source: int | list[int], destination: int | list[int]) -> list[int]:
    rank = len(dims)
    sources = [source] if isinstance(source, int) else source
    targets = [destination] if isinstance(destination, int) else destination
    pairs = zip(targets, sources, strict=True)
    places = {non_negative(target, rank): non_negative(dim, rank) for target, dim in pairs}
    rest = iter(dim for dim in dims if dim not in places.values())
    return [places[dim] if dim in places else next(rest) for dim in dims]
