"""`iqvit recipe`: the usual settings, to edit."""


def recipe() -> None:
    """Print the usual recipe as TOML.

    \b
    Example:
      iqvit recipe > r.toml
      # edit r.toml, and add what holds for an operator or for a part of the model:
      #   [operator.gelu]
      #   approximation = "igelu"
      #   [node."blocks.3.mlp.*"]
      #   bits = 16
      iqvit quantize ... --recipe r.toml

    The more specific always wins: node over operator over default; among nodes the longer name.
    """
    from iqvit.calibration.recipe import Recipe

    print(Recipe().to_toml(), end="")
