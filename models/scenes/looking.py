"""Rays from the eye to bodies: in which pixels each is seen, and how much of them it fills."""

from dataclasses import dataclass

import numpy as np

from iqvit.models.scenes.bodies import Bodies
from iqvit.models.scenes.camera import Camera
from iqvit.models.scenes.vectors import Field, pick, squares, units

STEPS = 12
LEAP = 5.0
"""Most distances that a step may take on the way to a convex shape."""
FAINT = 0.02
"""Shares of a pixel up to this are left out."""
CORNERS = [
    np.array(corner, np.float32)[:, None] * np.float32(0.004)
    for corner in ((1, -1, -1), (-1, -1, 1), (-1, 1, -1), (1, 1, 1))
]
"""Offsets for the slope of a distance, in radii."""


@dataclass(frozen=True, eq=False)
class Sights:
    """n pixels in which a body is seen, were it alone; arrays of [n] or [3, n], by body.

    rows, columns may lie outside the image. coverage: share of the pixel, in (0, 1]. points,
    normals and rays are the room's; local is the point in the axes of the body, in its radii.
    bounds: where the pixels of each body begin, and the end.
    """

    owners: np.ndarray
    bounds: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    coverage: np.ndarray
    points: Field
    normals: Field
    rays: Field
    local: Field


def look(bodies: Bodies, camera: Camera) -> Sights:
    """What the camera sees of each body."""
    rows, columns, owners = _pixels(bodies, camera)
    rays = camera.rays(rows, columns)
    offsets = bodies.centres - camera.eye.column
    apart = squares(offsets)
    product = rays * pick(offsets, owners)
    middle = product[0] + product[1] + product[2]
    radii = pick(bodies.radii, owners)
    reach = middle * middle + (radii * radii - pick(apart, owners))
    kept = (reach > 0).nonzero()[0]
    rows, columns, owners = pick(rows, kept), pick(columns, kept), pick(owners, kept)
    rays, radii = pick(rays, kept), pick(radii, kept)
    scale = 1 / radii
    # From here on distances along the rays, and places, are in radii of the body.
    middle, half = pick(middle, kept) * scale, np.sqrt(pick(reach, kept)) * scale
    bounds = bodies.bounds(owners)
    start = bodies.into(pick(offsets * (-1 / bodies.radii), owners), bounds)
    ray = bodies.into(rays, bounds)
    pixel = pick(np.sqrt(apart) / (bodies.radii * np.float32(camera.focal)), owners)
    distance, coverage = _march(bodies, owners, start, ray, (middle - half, middle + half), pixel)

    seen = (coverage > FAINT).nonzero()[0]
    owners, distance, rays = pick(owners, seen), pick(distance, seen), pick(rays, seen)
    local = pick(ray, seen) * distance + pick(start, seen)
    bounds = bodies.bounds(owners)
    return Sights(
        owners=owners,
        bounds=bounds,
        rows=pick(rows, seen),
        columns=pick(columns, seen),
        coverage=pick(coverage, seen),
        points=rays * (distance * pick(radii, seen)) + camera.eye.column,
        normals=bodies.out_of(_slope(bodies, local, bounds), bounds),
        rays=rays,
        local=local,
    )


def _pixels(bodies: Bodies, camera: Camera) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, columns and owners of all pixels that rays are sent through."""
    rows, columns, counts = [], [], []
    for body in bodies.bodies:
        window = camera.window(body.centre, body.radius)
        top, bottom, left, right = (0, 0, 0, 0) if window is None else window
        rows.append(np.arange(top, bottom, dtype=np.int32).repeat(right - left))
        columns.append(np.tile(np.arange(left, right, dtype=np.int32), bottom - top))
        counts.append(len(rows[-1]))
    owners = np.arange(len(bodies)).repeat(counts)
    return np.concatenate(rows), np.concatenate(columns), owners


def _march(
    bodies: Bodies,
    owners: np.ndarray,
    start: Field,
    ray: Field,
    between: tuple[np.ndarray, np.ndarray],
    pixel: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """How far along each ray the surface is, or is closest, and the share of the pixel it covers.

    The surface is taken in by half a pixel: a ray that misses it by less than one covers its pixel
    in part. A step goes to where the line through the last two distances meets zero, which on the
    way to a convex shape is never beyond its surface, though no more than `LEAP` distances, not to
    pass the closest place; for other shapes it is the distance itself.
    """
    t, end = between
    where, least = t.copy(), np.full_like(t, 2.0)
    live, margin, begin = np.arange(len(t)), pixel, start
    slowest = pick(np.where(bodies.convex, np.float32(1 / LEAP), np.float32(1)), owners)
    bounds = bodies.bounds(owners)
    at, best, gap, step = where, least, np.full_like(t, np.inf), np.ones_like(t)
    for count in range(STEPS):
        before, gap = gap, bodies.distances(ray * t + begin, bounds) + margin * 0.5
        # np.where is slow where the condition changes from ray to ray.
        at = at + (gap < best) * (t - at)
        best = np.minimum(gap, best)
        fall = (before - gap) / np.maximum(step, 1e-6)
        step = gap / np.minimum(np.maximum(fall, slowest), 1)
        t = t + step
        if count % 2 == 0:
            continue
        where[live], least[live] = at, best
        going = ((gap > margin * np.float32(1 / 16)) & (t < end)).nonzero()[0]
        if len(going) == 0:
            break
        owners, live, begin, ray = (
            pick(owners, going), pick(live, going), pick(begin, going), pick(ray, going),
        )  # fmt: skip
        t, end, margin, slowest, gap, step, at, best = (
            pick(a, going) for a in (t, end, margin, slowest, gap, step, at, best)
        )
        bounds = bodies.bounds(owners)
    return where, np.minimum(np.maximum(1 - least / pixel, 0), 1)


def _slope(bodies: Bodies, points: Field, bounds: np.ndarray) -> Field:
    """The outward normals, from four distances around each point."""
    a, b, c, d = (bodies.distances(points + corner, bounds) for corner in CORNERS)
    ab, cd = a - b, c - d
    return units(np.stack([ab - cd, (c + d) - (a + b), -ab - cd]))
