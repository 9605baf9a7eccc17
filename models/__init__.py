"""`iqvit.models`."""

if __name__ != "iqvit.models":
    raise ImportError("this folder installs as iqvit.models; write `from iqvit.models import ...`")
