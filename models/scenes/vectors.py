"""Vectors, as three floats or as columns of an array; only +, -, *, / and square roots, which IEEE
754 rounds alike everywhere."""

import math
from typing import NamedTuple

import numpy as np

Colour = tuple[float, float, float]
"""Linear RGB in 0..1."""
Field = np.ndarray
"""float32 [3, n]: n vectors."""


class Vec(NamedTuple):
    """x to the right, y up, z away from the camera."""

    x: float
    y: float
    z: float

    def dot(self, other: "Vec") -> float:
        return self.x * other.x + self.y * other.y + self.z * other.z

    def minus(self, other: "Vec") -> "Vec":
        return Vec(self.x - other.x, self.y - other.y, self.z - other.z)

    def along(self, direction: "Vec", length: float) -> "Vec":
        """self + length * direction."""
        x, y, z = direction
        return Vec(self.x + length * x, self.y + length * y, self.z + length * z)

    @property
    def column(self) -> Field:
        """[3, 1], to be combined with fields."""
        return np.array(self, np.float32)[:, None]


def dots(field: Field, vector: Vec) -> np.ndarray:
    """float32 [n]: the products of each with one vector."""
    x, y, z = vector
    return field[0] * x + field[1] * y + field[2] * z


def squares(field: Field) -> np.ndarray:
    """float32 [n]: the squared lengths."""
    product = field * field
    return product[0] + product[1] + product[2]


def units(field: Field) -> Field:
    """Of length 1; zero vectors stay what they are."""
    return field * (1 / np.maximum(np.sqrt(squares(field)), 1e-12))


def pick(values: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Those of the last axis; indices must be in range, for to check them costs as much again."""
    return values.take(indices, -1, mode="clip")


class Rotation(NamedTuple):
    """Rows of a rotation matrix, from an object's axes to the world's."""

    rows: tuple[Vec, Vec, Vec]

    def undo(self, v: Vec) -> Vec:
        """From the world's axes to the object's."""
        a, b, c = self.rows
        return Vec(
            a.x * v.x + b.x * v.y + c.x * v.z,
            a.y * v.x + b.y * v.y + c.y * v.z,
            a.z * v.x + b.z * v.y + c.z * v.z,
        )

    def apply_all(self, field: Field) -> Field:
        """From the object's axes to the world's."""
        x, y, z = (Vec(*column) for column in zip(*self.rows, strict=True))
        return _turned(field, x, y, z)

    def undo_all(self, field: Field) -> Field:
        """From the world's axes to the object's."""
        return _turned(field, *self.rows)


def _turned(field: Field, x: Vec, y: Vec, z: Vec) -> Field:
    """The sum of three columns times the field's rows."""
    found = field[0] * x.column
    found += field[1] * y.column
    found += field[2] * z.column
    return found


def rotation(
    yaw: tuple[float, float], tilt: tuple[float, float], spin: tuple[float, float]
) -> Rotation:
    """Spin about y, then tilt about x, then yaw about y; each as (cosine, sine)."""
    cy, sy = yaw
    ct, st = tilt
    cs, ss = spin
    return Rotation(
        (
            Vec(cy * cs - sy * ct * ss, sy * st, cy * ss + sy * ct * cs),
            Vec(st * ss, ct, -st * cs),
            Vec(-sy * cs - cy * ct * ss, cy * st, -sy * ss + cy * ct * cs),
        )
    )


def length(x: float, y: float, z: float = 0.0) -> float:
    """Of a vector; math.hypot is not rounded alike everywhere."""
    return math.sqrt(x * x + y * y + z * z)
