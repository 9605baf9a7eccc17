"""iqvit: the integer-only vision transformer compiler."""
