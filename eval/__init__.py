"""`iqvit.eval`."""

if __name__ != "iqvit.eval":
    raise ImportError("this folder installs as iqvit.eval; write `from iqvit.eval import ...`")
