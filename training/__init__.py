"""`iqvit.training`."""

if __name__ != "iqvit.training":
    raise ImportError(
        "this folder installs as iqvit.training; write `from iqvit.training import ...`"
    )
