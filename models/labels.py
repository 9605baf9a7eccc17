"""Names of the 1000 classes of ImageNet-1k."""

from functools import cache


@cache
def imagenet_labels() -> tuple[str, ...]:
    """The 1000 names in class order ("tench", "goldfish", ...).

    Source: the metadata that torchvision ships with its weight enumerations; nothing is fetched.
    """
    from torchvision.models import ResNet18_Weights

    return tuple(ResNet18_Weights.DEFAULT.meta["categories"])


def labels_for(classes: int) -> tuple[str, ...] | None:
    """ImageNet's names for a model of 1000 classes; None where the names cannot be known."""
    return imagenet_labels() if classes == 1000 else None
