import numpy as np
import pytest
import torch
from PIL import Image

from iqvit.errors import DataError, IqvitError
from iqvit.eval.overlay import INK, OPACITY, PAPER, overlay, png, write_class_map
from iqvit.eval.segmentation_data import read_mask

NAMES = ("sky", "road", "a long name of a class")
COLOURS = ((255, 0, 0), (0, 255, 0), (10, 20, 250))


def picture(height=300, width=200, grey=100):
    return torch.full((3, height, width), grey, dtype=torch.uint8)


def test_colours_lie_over_the_image_and_ignored_pixels_stay():
    found = torch.zeros(300, 200, dtype=torch.uint8)
    found[:100] = 1
    found[100:130] = 255
    shown = np.array(overlay(picture(), found, NAMES, COLOURS))
    mixed = [(100 * (256 - OPACITY) + colour * OPACITY + 128) >> 8 for colour in (0, 255, 0)]
    assert shown[50, 60].tolist() == mixed
    assert shown[110, 60].tolist() == [100, 100, 100]
    assert shown.shape[0] == 300
    legend = shown[:, 200:]
    # Largest class first: class 0 above class 1; class 2 is not there.
    first = np.argwhere((legend == COLOURS[0]).all(-1))
    second = np.argwhere((legend == COLOURS[1]).all(-1))
    assert 0 < len(first) == len(second)
    assert first[:, 0].max() < second[:, 0].min()
    assert not (legend == COLOURS[2]).all(-1).any()
    dark = (np.abs(legend.astype(int) - INK) < 60).all(-1)
    assert dark.sum() > 50
    # Nothing is cut off at the right.
    assert (legend[:, -2:] == PAPER).all()


def test_small_images_are_enlarged():
    shown = overlay(picture(50, 30), torch.zeros(50, 30, dtype=torch.int64), NAMES, COLOURS)
    assert shown.height == 250
    assert shown.width > 150


def test_many_classes_take_several_columns():
    names = [f"class {i}" for i in range(60)]
    found = torch.arange(60).repeat(250, 1)
    few = overlay(picture(250, 60), found.clamp(max=3), names, [(i, i, i) for i in range(60)])
    many = overlay(picture(250, 60), found, names, [(i, i, i) for i in range(60)])
    assert many.height == few.height == 250
    assert many.width - 60 > 3 * (few.width - 60)


def test_nothing_but_ignored_pixels():
    found = torch.full((300, 200), 255, dtype=torch.uint8)
    shown = np.array(overlay(picture(), found, NAMES, COLOURS))
    assert (shown[:, :200] == 100).all()


@pytest.mark.parametrize(
    ("found", "colours", "message"),
    [
        (torch.zeros(300, 201, dtype=torch.uint8), COLOURS, "cannot lie over"),
        (torch.full((300, 200), 3, dtype=torch.uint8), COLOURS, "holds class 3"),
        (torch.zeros(300, 200, dtype=torch.uint8), COLOURS[:2], "2 colours for 3 classes"),
    ],
)
def test_what_cannot_be_shown(found, colours, message):
    with pytest.raises(DataError, match=message):
        overlay(picture(), found, NAMES, colours)


def test_class_maps_are_masks(tmp_path):
    found = torch.tensor([[0, 1, 255], [7, 150, 2]], dtype=torch.uint8)
    write_class_map(tmp_path / "m.png", found)
    assert np.array_equal(read_mask(tmp_path / "m.png"), found.numpy())
    with pytest.raises(IqvitError, match="cannot write"):
        write_class_map(tmp_path / "absent" / "m.png", found)
    assert png(Image.new("RGB", (2, 2))).startswith(b"\x89PNG")
