"""Pictures of several answers to one image."""

import numpy as np
import torch

from iqvit.eval.overlay import OPACITY
from iqvit.eval.side_by_side import GAP, TITLE, Answer, side_by_side

PALETTE = ((255, 0, 0), (0, 255, 0), (0, 0, 255))


def test_answers_lie_right_of_the_image_in_their_colours():
    image = torch.full((3, 240, 100), 100, dtype=torch.uint8)
    classes = torch.ones(240, 100, dtype=torch.uint8)
    box, label = torch.tensor([[20.0, 60.0, 80.0, 200.0]]), torch.tensor([1])
    truth = Answer("truth", classes, torch.empty(0, 4), torch.empty(0).long())
    found = Answer("float", classes * 0, box, label, torch.tensor([0.7]))
    names, colours = ("mug", "can"), PALETTE[1:]
    shown = np.asarray(side_by_side(image, [truth, found], PALETTE, names, colours))
    assert shown.shape == (TITLE + 240, 3 * 100 + 2 * GAP, 3)
    panels = [shown[TITLE:, place * (100 + GAP) :][:, :100] for place in range(3)]
    mixed = [
        [(100 * (256 - OPACITY) + value * OPACITY + 128) >> 8 for value in PALETTE[label]]
        for label in (0, 1)
    ]
    assert (panels[0] == 100).all()
    assert (panels[1] == mixed[1]).all()
    assert panels[2][230, 50].tolist() == mixed[0]
    # The box is drawn in the colour of its class, and its name hides some of the map.
    assert (panels[2][150, 20] == PALETTE[2]).all()
    assert (panels[2] == PALETTE[2]).all(-1).sum() > 400
    assert (shown[:TITLE] < 60).all(-1).sum() > 40
