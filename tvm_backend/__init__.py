"""`iqvit.tvm_backend`."""

if __name__ != "iqvit.tvm_backend":
    raise ImportError("this folder installs as iqvit.tvm_backend; write `from iqvit.tvm_backend import ...`")
