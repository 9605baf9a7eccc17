"""From light to bytes: exposure, vignette, lens blur, noise, and the screen's curve."""

import numpy as np

from iqvit.models.scenes.dice import Dice


def develop(linear: np.ndarray, dice: Dice) -> np.ndarray:
    """uint8 [H, W, 3] of linear RGB, float32 [3, H, W], as a camera of random quality gives it."""
    _, height, width = linear.shape
    exposure = dice.uniform(0.8, 1.9)
    row = _from_middle(height) * dice.uniform(0.0, 0.4)
    column = _from_middle(width) * dice.uniform(0.0, 0.4)
    image = linear * ((1 - row)[:, None] * (1 - column)[None, :] * exposure)
    image = _blurred(image, dice.uniform(0.05, 0.25))
    if dice.chance(0.3):
        image = _blurred(_blurred(image, 0.25), 0.25)
    # Photons vary with the root of their number, which the screen's curve evens out.
    shown = np.sqrt(np.maximum(image, 0)) * 255
    strength = dice.uniform(1.0, 4.0) if dice.chance(0.7) else dice.uniform(4.0, 13.0)
    shown += dice.grain(shown.size).reshape(shown.shape) * strength
    levels = np.minimum(np.maximum(shown + 0.5, 0), 255).astype(np.uint8)
    return np.ascontiguousarray(levels.transpose(1, 2, 0))


def _from_middle(count: int) -> np.ndarray:
    place = (np.arange(count, dtype=np.float32) * 2 - (count - 1)) / count
    return place * place


def _blurred(image: np.ndarray, side: float) -> np.ndarray:
    """Each pixel with `side` of its neighbours, in rows and in columns; the border repeats."""
    for axis in (1, 2):
        lines = image.swapaxes(1, axis)
        blurred = lines * (1 - 2 * side)
        blurred[:, 1:] += lines[:, :-1] * side
        blurred[:, :-1] += lines[:, 1:] * side
        blurred[:, 0] += lines[:, 0] * side
        blurred[:, -1] += lines[:, -1] * side
        image = blurred.swapaxes(1, axis)
    return image
