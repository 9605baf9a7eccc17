import argparse
import os
import random

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from iqvit.errors import ModelError
from iqvit.models.weights import fits, load_weights, read_weights


def net():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def numbers():
    return {k: torch.full_like(v, i + 1.0) for i, (k, v) in enumerate(net().state_dict().items())}


def loaded(path):
    module = net()
    notes = load_weights(module, read_weights(path))
    for i, tensor in enumerate(module.state_dict().values()):
        assert (tensor == i + 1).all()
    return notes


def test_safetensors(tmp_path):
    save_file(numbers(), tmp_path / "w.safetensors")
    assert loaded(tmp_path / "w.safetensors") == ()


@pytest.mark.parametrize("suffix", ["pth", "pt", "bin"])
def test_torch_files(tmp_path, suffix):
    torch.save(numbers(), tmp_path / f"w.{suffix}")
    assert loaded(tmp_path / f"w.{suffix}") == ()


def test_wrappers_are_opened_and_said(tmp_path):
    path = tmp_path / "w.pth"
    zeros = {k: v * 0 for k, v in numbers().items()}
    # A Namespace beside the weights is how DeiT's and many other checkpoints look.
    extra = {"epoch": 3, "args": argparse.Namespace(lr=1.0)}
    torch.save({"model": zeros, "ema": {"module": numbers(), "updates": 9}, **extra}, path)
    assert loaded(path) == ("weights taken from ['ema']['module'] of w.pth",)


def test_prefixes_are_removed_and_said(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"state_dict": {f"module.model.{k}": v for k, v in numbers().items()}}, path)
    assert loaded(path) == (
        "weights taken from ['state_dict'] of w.pth",
        "prefix 'module.' removed from every weight name",
        "prefix 'model.' removed from every weight name",
    )


def test_a_prefix_of_the_model_itself_stays(tmp_path):
    path = tmp_path / "w.pth"
    module = nn.Module()
    module.model = net()
    torch.save(module.state_dict(), path)
    assert load_weights(module, read_weights(path)) == ()


def test_half_precision_is_converted_and_said(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({k: v.bfloat16() for k, v in numbers().items()}, path)
    assert loaded(path) == ("weights of torch.bfloat16 converted to float32",)


def test_every_misfit_is_reported_at_once(tmp_path):
    tensors = numbers()
    del tensors["0.bias"]
    tensors["2.weight"] = torch.zeros(9, 9)
    tensors["2.bias"] = torch.zeros(2, dtype=torch.int32)
    tensors |= {f"extra.{i:02d}": torch.zeros(1) for i in range(12)}
    save_file(tensors, tmp_path / "w.safetensors")
    weights = read_weights(tmp_path / "w.safetensors")
    module = net()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    with pytest.raises(ModelError) as caught:
        load_weights(module, weights)
    message = str(caught.value)
    for part in (
        "w.safetensors",
        "missing (1)\n    0.bias [4]",
        "unexpected (12)\n    extra.00 [1]",
        "... and 2 more",
        "wrong shape or type (2)",
        "2.weight: [9, 9] where the model has [2, 4]",
        "2.bias: torch.int32 where the model has torch.float32",
        "remedy",
    ):
        assert part in message
    assert "extra.10" not in message
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert not fits(module, weights)


def test_a_tied_weight_stored_once_is_not_missing(tmp_path):
    module = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    module[1].weight = module[0].weight
    tensors = {k: v.clone() for k, v in module.state_dict().items() if k != "1.weight"}
    save_file(tensors, tmp_path / "w.safetensors")
    assert load_weights(module, read_weights(tmp_path / "w.safetensors")) == ()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(tmp_path, value):
    tensors = numbers()
    tensors["2.bias"][1] = value
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"NaN or infinite(?s:.*)2\.bias"):
        load_weights(net(), read_weights(tmp_path / "w.safetensors"))


class Attack:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


def test_a_pickle_that_runs_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Attack()}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match="could run code"):
        read_weights(tmp_path / "w.pth")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_damaged_files_are_refused(tmp_path, name):
    path = tmp_path / name
    save_file(numbers(), path) if path.suffix == ".safetensors" else torch.save(numbers(), path)
    whole = path.read_bytes()
    chance = random.Random(0)
    for length in [0, 1, 7, 9, 100, *(chance.randrange(len(whole)) for _ in range(20))]:
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError, match=name):
            read_weights(path)


def test_files_that_hold_no_weights(tmp_path):
    with pytest.raises(ModelError, match="no weight file"):
        read_weights(tmp_path / "gone.pth")
    (tmp_path / "w.onnx").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"not from \.onnx"):
        read_weights(tmp_path / "w.onnx")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ModelError, match="holds a list"):
        read_weights(tmp_path / "list.pth")
    torch.save({"a": torch.zeros(1), "epoch": 3}, tmp_path / "mixed.pth")
    with pytest.raises(ModelError, match=r"not tensors(?s:.*)epoch"):
        read_weights(tmp_path / "mixed.pth")
