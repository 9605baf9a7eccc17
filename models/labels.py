"""Names of the classes of ImageNet-1k and of COCO."""

from functools import cache


@cache
def imagenet_labels() -> tuple[str, ...]:
    """The 1000 names in class order ("tench", "goldfish", ...).

    Source: the metadata that torchvision ships with its weight enumerations; nothing is fetched.
    """
    from torchvision.models import ResNet18_Weights

    return tuple(ResNet18_Weights.DEFAULT.meta["categories"])


@cache
def coco_labels() -> tuple[str, ...]:
    """The 80 names of COCO's categories in the order of their ids ("person", "bicycle", ...).

    Source: as above; of the 91 ids, those that the data sets do not use are left out.
    """
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    names = FasterRCNN_ResNet50_FPN_Weights.DEFAULT.meta["categories"]
    return tuple(name for name in names if name not in ("__background__", "N/A"))


def labels_for(classes: int) -> tuple[str, ...] | None:
    """ImageNet's names for a model of 1000 classes; None where the names cannot be known."""
    return imagenet_labels() if classes == 1000 else None
