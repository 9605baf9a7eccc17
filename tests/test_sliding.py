import pytest
import torch
from PIL import Image

from iqvit.errors import DataError
from iqvit.eval.sliding import (
    class_map,
    read_covering,
    sliding_class_map,
    sliding_logits,
    window_starts,
)

WINDOW = (8, 12)


def image_of(height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8, generator=generator)


def local(x):
    """int16 logits that depend on the window, not on the pixel alone, so that windows differ."""
    x = x.to(torch.int32)
    return torch.stack(
        [x[:, 0] - 128, x[:, 1] - x.flatten(1).sum(1)[:, None, None] % 251, 3 * x[:, 2] - 500], 1
    ).to(torch.int16)


@pytest.mark.parametrize(
    ("length", "window", "stride", "starts"),
    [
        (10, 10, 4, [0]),
        (11, 10, 4, [0, 1]),
        (22, 10, 4, [0, 4, 8, 12]),
        (23, 10, 4, [0, 4, 8, 12, 13]),
        (20, 10, 10, [0, 10]),
    ],
)
def test_windows_cover_all_and_end_at_the_border(length, window, stride, starts):
    assert window_starts(length, window, stride) == starts


@pytest.mark.parametrize(("stride", "window"), [(0, 10), (11, 10), (-1, 10)])
def test_strides_that_are_none(stride, window):
    with pytest.raises(DataError, match="stride"):
        window_starts(30, window, stride)


def test_an_image_smaller_than_the_window():
    with pytest.raises(DataError, match="smaller than the window"):
        sliding_logits(local, image_of(7, 12), WINDOW, 4)


@pytest.mark.parametrize("size", [(8, 12), (19, 33), (8, 13)])
def test_sums_by_pixel(size):
    image = image_of(*size)
    found = sliding_logits(local, image, WINDOW, 5)
    expected = torch.zeros(1, 3, *size, dtype=torch.int64)
    counts = torch.zeros(size, dtype=torch.int64)
    for top in sorted({*range(0, size[0] - 8, 5), size[0] - 8}):
        for left in sorted({*range(0, size[1] - 12, 5), size[1] - 12}):
            part = image[..., top : top + 8, left : left + 12]
            expected[..., top : top + 8, left : left + 12] += local(part)
            counts[top : top + 8, left : left + 12] += 1
    assert found.dtype == torch.int32
    assert torch.equal(found.long(), expected)
    # the division by the number of windows changes no argmax
    chosen = sliding_class_map(local, image, WINDOW, 5)
    means = expected.double() / counts
    best = means.gather(1, chosen[:, None].long())
    assert torch.equal(best[:, 0], means.max(1).values)
    real = sliding_logits(lambda x: local(x).float(), image, WINDOW, 5)
    assert real.dtype == torch.float64
    assert torch.equal(real, expected.double())


def test_equal_logits_give_the_lowest_class():
    logits = torch.tensor([[3, 1, 5], [3, 2, 4], [2, 2, 5]], dtype=torch.int32)
    assert class_map(logits.view(1, 3, 1, 3)).tolist() == [[[0, 1, 0]]]
    wide = torch.zeros(2, 256, 2, 3, dtype=torch.int8)
    wide[:, 255, 1] = 1
    found = class_map(wide)
    assert found.dtype == torch.uint8
    assert found[:, 0].max() == 0
    assert found[:, 1].min() == 255
    with pytest.raises(DataError, match=r"1\.\.256 classes"):
        class_map(torch.zeros(1, 257, 2, 2))
    with pytest.raises(DataError, match="shape"):
        class_map(torch.zeros(3, 2, 2))


def constant(value):
    return lambda x: torch.full((1, 2, *x.shape[2:]), value, dtype=torch.int32)


@pytest.mark.parametrize("sign", [1, -1])
def test_sums_that_could_leave_int32_are_refused(sign):
    # Stride 4 lays 2 x 3 windows of 8 x 12 on one pixel.
    most = (2**31 - 1) // 6
    image = image_of(16, 24)
    found = sliding_logits(constant(sign * most), image, WINDOW, 4)
    assert int(found.abs().max()) == 6 * most
    with pytest.raises(DataError, match=f"6 windows on one pixel with logits up to {most + 1}"):
        sliding_logits(constant(sign * (most + 1)), image, WINDOW, 4)


def test_models_that_give_no_logits():
    image = image_of(16, 24)
    with pytest.raises(DataError, match="ends in logits, not in a class map"):
        sliding_logits(lambda x: x[:, 0], image, WINDOW, 4)
    with pytest.raises(DataError, match=r"\(1, 3, 4, 6\)"):
        sliding_logits(lambda x: x[..., ::2, ::2], image, WINDOW, 4)
    with pytest.raises(DataError, match=r"uint8 \[1, 3, H, W\] is needed"):
        sliding_logits(local, image.float(), WINDOW, 4)


@pytest.mark.parametrize(
    ("size", "read"),
    [((30, 20), (20, 30)), ((12, 8), (8, 12)), ((9, 4), (8, 18)), ((5, 6), (15, 12))],
)
def test_images_are_read_so_that_a_window_fits(tmp_path, size, read):
    Image.new("RGB", size, (9, 8, 7)).save(tmp_path / "a.png")
    found = read_covering(tmp_path / "a.png", WINDOW)
    assert found.shape == (3, *read)
    assert found[:, 0, 0].tolist() == [9, 8, 7]


def test_an_image_too_narrow_to_cover(tmp_path):
    Image.new("RGB", (60000, 1)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="too narrow"):
        read_covering(tmp_path / "a.png", (512, 512))
