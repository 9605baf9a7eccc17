"""`iqvit.calibration`."""

if __name__ != "iqvit.calibration":
    raise ImportError(
        "this folder installs as iqvit.calibration; write `from iqvit.calibration import ...`"
    )
