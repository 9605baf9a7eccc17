"""Preprocessing: images that are too small for the model."""

from pathlib import Path

import pytest
from PIL import Image

from iqvit.errors import DataError
from iqvit.eval.preprocess import Preprocess


def test_an_image_smaller_than_a_patch_is_refused(tmp_path: Path) -> None:
    prepare = Preprocess((32, 48), crop="squash", least=16)
    assert Preprocess.from_dict(prepare.to_dict()).least == 16
    small, enough = tmp_path / "small.png", tmp_path / "enough.png"
    Image.new("RGB", (40, 15)).save(small)
    Image.new("RGB", (40, 16)).save(enough)
    assert prepare(enough).shape == (3, 32, 48)
    with pytest.raises(DataError, match=r"small\.png: an image of 40x15 .* 16 pixels"):
        prepare(small)
