"""What a user can do wrong, and how it is told: one message, no traceback, exit code 2."""

__all__ = [
    "CaptureError",
    "DataError",
    "FileFormatError",
    "GraphError",
    "IqvitError",
    "ModelError",
    "OverflowProofError",
    "RecipeError",
    "TargetError",
    "UnsupportedOp",
    "node_message",
]


class IqvitError(Exception):
    """Base of every error that the user can act on; the command line prints it and exits with 2."""


class CaptureError(IqvitError):
    """The float model cannot be exported, for example for data-dependent control flow."""


class UnsupportedOp(IqvitError):
    """Nodes of the captured model that no integer operator stands for; all of them at once."""


class GraphError(IqvitError):
    """A graph that breaks a rule of its stage (unknown name, wrong type, wrong order)."""


class OverflowProofError(GraphError):
    """A value whose proved range leaves its integer type: the graph does not build."""


class FileFormatError(IqvitError):
    """A file that is truncated, altered, of an unknown version or not ours."""


class RecipeError(IqvitError):
    """A recipe with an unknown key or an impossible value."""


class TargetError(IqvitError):
    """An unknown target, or an artifact for another CPU."""


class ModelError(IqvitError):
    """A model that cannot be made: unknown name, or weights that do not fit."""


class DataError(IqvitError):
    """Images or annotations that are missing, unreadable or inconsistent."""


def node_message(what: str, node: str, source: str, remedy: str) -> str:
    """The four lines in which every error about a node is told."""
    return f"{what}\n  node    {node}\n  from    {source or 'unknown'}\n  remedy  {remedy}"
