"""Names and colours of the classes of a segmentation data set."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from iqvit.errors import DataError

Colour = tuple[int, int, int]
MOST_CLASSES = 255
"""Masks and class maps are 8 bits, and 255 is the value of pixels without a class."""
CITYSCAPES_COLOURS = {
    "road": (128, 64, 128),
    "sidewalk": (244, 35, 232),
    "building": (70, 70, 70),
    "wall": (102, 102, 156),
    "fence": (190, 153, 153),
    "pole": (153, 153, 153),
    "traffic light": (250, 170, 30),
    "traffic sign": (220, 220, 0),
    "vegetation": (107, 142, 35),
    "terrain": (152, 251, 152),
    "sky": (70, 130, 180),
    "person": (220, 20, 60),
    "rider": (255, 0, 0),
    "car": (0, 0, 142),
    "truck": (0, 0, 70),
    "bus": (0, 60, 100),
    "train": (0, 80, 100),
    "motorcycle": (0, 0, 230),
    "bicycle": (119, 11, 32),
}
ADE20K_NAMES = """
wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person,
earth, door, table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea,
mirror, rug, field, armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion,
base, box, column, signboard, chest of drawers, counter, sand, sink, skyscraper, fireplace,
refrigerator, grandstand, path, stairs, runway, case, pool table, pillow, screen door, stairway,
river, bridge, bookcase, blind, coffee table, toilet, flower, book, hill, bench, countertop, stove,
palm, kitchen island, computer, swivel chair, boat, bar, arcade machine, hovel, bus, towel, light,
truck, tower, chandelier, awning, streetlight, booth, television receiver, airplane, dirt track,
apparel, pole, land, bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship,
fountain, conveyer belt, canopy, washer, plaything, swimming pool, stool, barrel, basket, waterfall,
tent, bag, minibike, cradle, oven, ball, food, step, tank, trade name, microwave, pot, animal,
bicycle, lake, dishwasher, screen, blanket, sculpture, hood, sconce, vase, traffic light, tray,
ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator, glass, clock, flag
"""


@dataclass(frozen=True)
class ClassList:
    """Names and RGB colours (0..255) by class index, and the mask value without a class."""

    names: tuple[str, ...]
    palette: tuple[Colour, ...]
    ignore: int = 255

    def __post_init__(self) -> None:
        if not 1 <= len(self.names) <= MOST_CLASSES:
            raise DataError(f"{len(self.names)} classes where 1..{MOST_CLASSES} are possible")
        empty = [str(i) for i, name in enumerate(self.names) if not name]
        if empty or len(set(self.names)) != len(self.names):
            raise DataError(f"class names are empty or repeated: {', '.join(self.names)}")

    @classmethod
    def of(cls, names: Sequence[str]) -> "ClassList":
        """Names alone, with `distinct_colours`."""
        stripped = tuple(name.strip() for name in names)
        return cls(stripped, distinct_colours(len(stripped)))


def read_classes(path: Path) -> ClassList:
    """A text file: one class a line, `NAME` or `NAME R G B`; the first line is class 0.

    A line `ignore = N` says which mask value has no class (255 without it); lines that are empty or
    begin with # are passed over. DataError naming file and line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a readable class list: {error}") from error
    names: list[str] = []
    colours: dict[int, Colour] = {}
    ignore = 255
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if words[:2] == ["ignore", "="]:
            ignore = _byte(words[2:], f"{path}, line {number}")
            continue
        if len(words) > 3 and all(_is_number(word) for word in words[-3:]):
            where = f"{path}, line {number}"
            red, green, blue = (_byte([word], where) for word in words[-3:])
            colours[len(names)] = (red, green, blue)
            words = words[:-3]
        names.append(" ".join(words))
    chosen = distinct_colours(len(names))
    palette = tuple(colours.get(i, chosen[i]) for i in range(len(names)))
    try:
        return ClassList(tuple(names), palette, ignore)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def distinct_colours(count: int) -> tuple[Colour, ...]:
    """The colour map of PASCAL VOC from its entry 1 on (entry 0 is black): bits of the index,
    three at a time, become the high bits of red, green and blue."""
    return tuple(_voc_colour(index + 1) for index in range(count))


def _voc_colour(index: int) -> Colour:
    red = green = blue = 0
    for shift in range(7, -1, -1):
        red |= (index & 1) << shift
        green |= (index >> 1 & 1) << shift
        blue |= (index >> 2 & 1) << shift
        index >>= 3
    return red, green, blue


def _is_number(word: str) -> bool:
    return word.lstrip("-").isdecimal()


def _byte(words: list[str], where: str) -> int:
    if len(words) != 1 or not _is_number(words[0]) or not 0 <= int(words[0]) <= 255:
        raise DataError(f"{where}: {' '.join(words)!r} is no whole number in 0..255")
    return int(words[0])


CITYSCAPES = ClassList(tuple(CITYSCAPES_COLOURS), tuple(CITYSCAPES_COLOURS.values()))
ADE20K = ClassList.of(ADE20K_NAMES.replace("\n", " ").split(","))
