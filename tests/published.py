"""Recipes that several test files try: the approximations of two papers."""

from iqvit.calibration.recipe import Recipe

PUBLISHED = {
    "shifts": Recipe(
        operators={
            "gelu": {"approximation": "shiftgelu"},
            "attention": {"approximation": "shiftmax"},
            "layer_norm": {"approximation": "ilayernorm"},
        }
    ),
    "I-BERT": Recipe(
        operators={
            "gelu": {"approximation": "igelu"},
            "attention": {"approximation": "isoftmax"},
        }
    ),
}
