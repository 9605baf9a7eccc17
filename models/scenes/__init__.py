"""Rendered scenes: rooms with things of eight kinds on the floor, made from a seed alone."""

from iqvit.models.scenes.folder import write_scenes
from iqvit.models.scenes.scene import CLASSES, SPLITS, STUFF, THINGS, Scene, scene, split_scene

__all__ = [
    "CLASSES",
    "SPLITS",
    "STUFF",
    "THINGS",
    "Scene",
    "scene",
    "split_scene",
    "write_scenes",
]
