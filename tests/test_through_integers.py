"""Training through the integers: what is validated is what is exported, and gradients are right."""

import copy
import json
import os
import subprocess
import sys
from functools import cache

import pytest
import torch
from published import PUBLISHED
from torch import nn
from torch.nn import functional

import iqvit
from iqvit.calibrated import Weight
from iqvit.calibration.recipe import Recipe, Settings
from iqvit.errors import DataError, IqvitError
from iqvit.interpret import evaluate, evaluate_batch
from iqvit.models.vit import ViT, ViTConfig
from iqvit.processes import World
from iqvit.training.integers.forms import SETTLING
from iqvit.training.integers.product import Product
from iqvit.training.integers.straight import straight
from iqvit.training.through_integers import PROGRAM, StepRules, ThroughIntegers, through_integers
from iqvit.training.trainer import Output, Schedule, Trainer
from iqvit.training.tuning import Tuning

SIZE = 16
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
TINY = ViTConfig(image_size=SIZE, patch_size=8, width=16, depth=1, heads=2, mlp_ratio=2, classes=4)
RULES = {
    "followed": StepRules(),
    "moving": StepRules(ranges="moving"),
    "learned": StepRules("learned"),
    "learned, moving": StepRules("learned", "moving"),
}
RECIPES = {
    "default": Recipe(),
    "weights of 4 bits, one scale": Recipe(Settings(weight_bits=4, weight_granularity="tensor")),
    "tensors": Recipe(Settings(granularity="tensor", observer="percentile")),
    "channels": Recipe(Settings(granularity="channel")),
    **PUBLISHED,
    "lambda": Recipe(operators={"gelu": {"approximation": "lambda_shiftgelu"}}),
}


def drawn(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)


def vit() -> ViT:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ViT(TINY).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                # As in a trained model, biases differ and attention attends.
                scale = 0.1 if parameter.ndim == 1 else 0.05
                parameter.add_(torch.randn_like(parameter) * scale)
    return model


@cache
def canonical() -> iqvit.CanonicalModel:
    return iqvit.canonicalize(iqvit.capture(vit(), (1, 3, SIZE, SIZE), **IMAGENET))


@cache
def calibrated(recipe: str) -> iqvit.Calibrated:
    return iqvit.calibrate(canonical(), [drawn(4)], RECIPES[recipe])


def learner_of(recipe="default", rules="followed") -> ThroughIntegers:
    return ThroughIntegers(canonical(), calibrated(recipe), RULES[rules])


def train(learner, steps=8, lr=2e-3) -> list[float]:
    """Losses of learning four labels by heart."""
    images, labels = drawn(4), torch.arange(4)
    optimizer = torch.optim.AdamW(learner.parameters(), lr, weight_decay=0.0)
    losses = []
    learner.train()
    for _ in range(steps):
        loss = functional.cross_entropy(learner(images)["logits"], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# The program


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("recipe", RECIPES)
def test_it_starts_with_the_calibrated_program(recipe, rules):
    learner = learner_of(recipe, rules)
    assert learner.export().hash == iqvit.convert(canonical(), calibrated(recipe)).hash


def test_from_a_model_and_images_it_starts_as_quantize_would():
    learner = through_integers(vit(), drawn(4), RECIPES["tensors"], meta={"model": "tiny"})
    graph = iqvit.quantize(vit(), drawn(4), RECIPES["tensors"], meta={"model": "tiny"})
    assert learner.export().hash == graph.hash
    assert dict(learner.export().meta) == dict(graph.meta)


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_validated_is_what_is_exported(recipe, rules, tmp_path):
    learner = learner_of(recipe, rules)
    before = learner.export().hash
    losses = train(learner, SETTLING + 4 if rules == "moving" else 6)
    assert losses[-1] < losses[0]
    learner.eval()
    images = drawn(6, seed=1)
    validated = learner.integers(images)
    with torch.no_grad():
        reals = learner(images)["logits"]
    learner.save(tmp_path)
    graph = iqvit.load(tmp_path / PROGRAM)
    assert graph.hash == learner.export().hash != before
    found = iqvit.run(graph, images)
    assert found.keys() == validated.keys()
    assert all(torch.equal(found[name], validated[name]) for name in found)
    qparams = graph[graph.outputs["logits"]].qparams
    torch.testing.assert_close(qparams.dequantize(found["logits"]).float(), reals)
    # And training sees the same values as evaluation.
    assert torch.equal(learner(images)["logits"], reals)


def test_the_exported_program_is_a_conversion_of_the_present_weights():
    learner = learner_of()
    train(learner, 2)
    learner.eval()
    first = learner.export()
    assert learner.export() is first
    with torch.no_grad():
        next(iter(learner.products.values())).bias.add_(0.5)
    assert learner.export().hash != first.hash


def test_a_batch_has_the_bits_of_its_images():
    graph, images = learner_of("shifts").export(), drawn(5, seed=3)
    batch = evaluate_batch(graph, images, trace=True)
    singles = [evaluate(graph, image, trace=True) for image in images.split(1)]
    assert batch.keys() == singles[0].keys()
    for name, value in batch.items():
        assert torch.equal(value, torch.stack([single[name] for single in singles]))
    chunked = evaluate_batch(graph, images, trace=True, chunk=2)
    assert all(torch.equal(chunked[name], batch[name]) for name in batch)


def test_autocasting_changes_nothing():
    learner, images = learner_of(), drawn(3)
    plain = learner(images)["logits"]
    with torch.autocast("cpu", torch.bfloat16):
        cast = learner(images)["logits"]
        integers = learner.integers(images)["logits"]
    assert torch.equal(plain, cast)
    assert torch.equal(integers, learner.integers(images)["logits"])


def test_a_copy_learns_by_itself():
    learner = learner_of(rules="learned")
    other = copy.deepcopy(learner)
    before = learner.export().hash
    train(other, 2)
    assert other.export().hash != before == learner.export().hash


# Gradients


def test_gradients_are_those_of_the_float_model():
    """Linear, GELU, LayerNorm and softmax, where rounding is fine."""
    learner, images = learner_of(), drawn(4)
    outputs = learner(images)["logits"]
    weight = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(0))
    (outputs * weight).sum().backward()
    mean, std = (torch.tensor(IMAGENET[key]).view(3, 1, 1) for key in ("mean", "std"))
    pixels = (images / 255 - mean) / std
    exact = vit()
    (exact(pixels) * weight).sum().backward()
    qkv = exact.get_parameter("blocks.0.attn.qkv.weight").grad.split(TINY.width)
    pairs = {
        "blocks_0_mlp_fc1_linear": exact.get_parameter("blocks.0.mlp.fc1.weight").grad,
        "blocks_0_mlp_fc2_linear": exact.get_parameter("blocks.0.mlp.fc2.weight").grad,
        "head_linear": exact.get_parameter("head.weight").grad,
        "patch_embed_proj_conv2d": exact.get_parameter("patch_embed.proj.weight").grad,
        **dict(zip(sorted(n for n in learner.products if "qkv" in n), qkv, strict=True)),
    }
    assert len(pairs) == 7
    for name, wanted in pairs.items():
        found = learner.products[name].weight.grad
        likeness = functional.cosine_similarity(found.flatten(), wanted.flatten(), dim=0)
        assert float(likeness) > 0.99, name


def test_what_saturates_has_no_gradient():
    conv = nn.Conv2d(3, 4, 4, 4)
    grey = torch.full((2, 3, SIZE, SIZE), 120, dtype=torch.uint8) + drawn(2) // 16
    learner = through_integers(conv, grey)
    images = drawn(3, seed=4)
    ((name, outputs),) = learner(images).items()
    integers = learner.integers(images)[name]
    limits = learner.export()[learner.export().outputs[name]].op
    saturated = (integers == limits.lo) | (integers == limits.hi)
    assert 0.05 < float(saturated.float().mean()) < 0.95
    outputs.sum().backward()
    (part,) = learner.products.values()
    # Each unsaturated value adds 1 to the gradient of its channel's bias.
    assert torch.equal(part.bias.grad, (~saturated).sum((0, 2, 3)).float())


def test_the_gradient_of_a_step_size_is_that_of_lsq():
    step, most = 0.1, 7
    x = torch.tensor([0.234, -0.51, 2.0, -3.0, 0.05], requires_grad=True)
    factor = torch.ones(1, requires_grad=True)
    q = (x.detach() / step).round().clamp(-most, most)
    inside = (x.detach() / step).abs() < most + 0.5
    y = straight(x, q * step, inside, factor, most)
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    (y * weight).sum().backward()
    assert torch.equal(x.grad, weight * torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0]))
    # Equation 3 of the paper: round(v) - v inside, the bound beyond; then its equation for g.
    by_step = torch.where(inside, q - x.detach() / step, q) * step
    expected = (by_step * weight).sum() / (5 * most) ** 0.5
    torch.testing.assert_close(factor.grad, expected.reshape(1))


# Weights and scales


def product(weight: torch.Tensor, bits: int = 4, **kind: bool) -> Product:
    """A linear's weights over an input of scale 0.5, rounded to the nearest."""
    most = 2 ** (bits - 1) - 1
    scale = 0.5 * weight.abs().amax(1).double() / most
    q = torch.floor(weight * 0.5 / scale[:, None] + 0.5).to(torch.int8)
    rounded = Weight(q.numpy(), scale.numpy(), torch.zeros(len(weight)).double().numpy())
    columns = torch.full((1, weight.shape[1]), 0.5)
    return Product(weight, rounded, columns, bits, **{"shared": False, "learned": False, **kind})


def test_real_weights_start_where_they_round_to_calibrations_integers():
    weight = torch.randn(6, 10, generator=torch.Generator().manual_seed(1))
    made = product(weight)
    q = made.rounded(1.0).q.copy()
    q[0, :3] = [1, -2, 3]  # another rounding than the nearest
    scale = made.rounded(1.0).scale
    other = Product(
        weight, Weight(q, scale, made.rounded(1.0).bias), torch.full((1, 10), 0.5), 4,
        shared=False, learned=False,
    )  # fmt: skip
    assert (other.rounded(1.0).q == q).all()
    assert (other.rounded(1.0).scale == scale).all()
    steps = torch.from_numpy(scale)[:, None] / 0.5
    assert float((other.weight.detach().double() / steps - torch.from_numpy(q)).abs().max()) < 0.5
    assert torch.equal(other().double(), (torch.from_numpy(q) * steps).float().double())


@pytest.mark.parametrize("shared", [False, True])
def test_steps_of_weights_follow_the_largest(shared):
    weight = torch.randn(6, 10, generator=torch.Generator().manual_seed(1))
    made = product(weight, shared=shared)
    before = made.rounded(1.0)
    with torch.no_grad():
        made.weight[2] *= 2
    after = made.rounded(1.0)
    grown = after.scale / before.scale
    if not shared:
        assert grown.tolist() == [1, 1, 2, 1, 1, 1]
        assert (after.q == before.q).all()
    else:
        assert len(set(grown.tolist())) == 1
    assert (made.rounded(3.0).scale == after.scale * 3.0).all()


def test_a_channel_of_zeros_may_grow():
    weight = torch.tensor([[0.0, 0.0], [0.5, 1.0]])
    rounded = Weight(
        torch.tensor([[0, 0], [4, 7]], dtype=torch.int8).numpy(),
        torch.tensor([0.1, 0.1]).double().numpy(),
        torch.zeros(2).double().numpy(),
    )
    made = Product(weight, rounded, torch.ones(1, 2), 4, shared=False, learned=False)
    assert (made.rounded(1.0).q == rounded.q).all()
    with torch.no_grad():
        made.weight[0, 0] = 0.35
    grown = made.rounded(1.0)
    assert grown.q[0].tolist() == [7, 0]
    assert grown.scale[0] == pytest.approx(0.05)


def test_ranges_move_with_what_is_seen():
    conv = nn.Conv2d(3, 4, 4, 4)
    grey = torch.full((2, 3, SIZE, SIZE), 120, dtype=torch.uint8) + drawn(2) // 16
    learner = through_integers(conv, grey, rules=StepRules(ranges="moving", momentum=0.5))
    begun = learner.export().hash
    for _ in range(SETTLING):
        learner(grey)
    assert learner.export().hash == begun
    images = drawn(3, seed=4)
    for _ in range(8):
        (name,) = learner(images)
    op = learner.export()[learner.export().outputs[name]].op
    integers = learner.integers(images)[name]
    assert learner.export().hash != begun
    assert not bool(((integers == op.lo) | (integers == op.hi)).any())
    learner.eval()
    still = learner.export().hash
    learner(images)
    assert learner.export().hash == still


def test_the_image_and_known_ranges_do_not_move():
    net = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.Sigmoid())
    learner = through_integers(net, drawn(2), rules=RULES["learned, moving"])
    forms = learner.frame.forms()
    assert len(forms) == 3
    assert [form.learned or form.moving for form in forms.values()] == [False, False, False]


# Runs


def tuning(rules="learned, moving") -> Tuning:
    """Four labels by heart, as a task of the trainer."""
    images = drawn(4)

    def read(index):
        noise = torch.randint(0, 8, images[index].shape, dtype=torch.uint8)
        return images[index] // 2 + noise, index

    def score(learner, world):
        found = learner.integers(images.to(world.device))["logits"].argmax(-1)
        return {"top1": float((found.cpu() == torch.arange(4)).double().mean())}

    return Tuning(
        learner_of(rules=rules),
        4,
        read,
        lambda outputs, batch: functional.cross_entropy(outputs["logits"], batch[1]),
        score,
        "top1",
    )


PLAN = Schedule(epochs=8, batch=2, lr=2e-3, weight_decay=0.0, average=0.5)


def test_resumed_is_never_stopped_to_the_bit(tmp_path):
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    whole = Trainer(tuning(), PLAN, Output(folders[0]), World())
    history = whole.run()
    assert int(whole.model.forms.batches) > SETTLING
    Trainer(tuning(), PLAN, Output(folders[1]), World()).run(until=7)
    second = Trainer(tuning(), PLAN, Output(folders[1], resume=True), World())
    continued = second.run()
    ours, theirs = whole.model.state_dict(), second.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert [row["loss"] for row in history] == [row["loss"] for row in continued]
    programs = [iqvit.load(folder / "last" / PROGRAM) for folder in folders]
    assert programs[0].hash == programs[1].hash == whole.scored.eval().export().hash
    assert history[-1]["loss"] < history[0]["loss"]


SCRIPT = """
import importlib.util, json, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("toy", sys.argv[1])
toy = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toy)
from iqvit.processes import processes

folder = Path(sys.argv[2])
with processes() as world:
    run = toy.Trainer(toy.tuning(), toy.PLAN, toy.Output(folder), world)
    history = run.run()
    facts = {"hash": run.model.eval().export().hash, "loss": [row["loss"] for row in history],
             "top1": history[-1]["top1"], "size": world.size,
             "average": run.model.forms.average.tolist()}
    (folder / f"{world.rank}.json").write_text(json.dumps(facts))
"""


def test_two_processes_train_one_program(tmp_path):
    one = Trainer(tuning(), PLAN, Output(tmp_path), World())
    history = one.run()
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    found = {"PYTHONPATH": os.path.dirname(__file__)}  # of this file's imports
    environment = {**os.environ, **found, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, str(script), __file__, str(tmp_path)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first["size"] == 2
    losses = torch.tensor([row["loss"] for row in history])
    torch.testing.assert_close(torch.tensor(first["loss"]), losses, rtol=0.02, atol=0.01)


# What is refused


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"steps": "lsq"}, "step sizes are followed or learned, not 'lsq'"),
        ({"ranges": "free"}, "ranges are fixed or moving, not 'free'"),
        ({"momentum": 1.0}, "in 0..1, not 1.0"),
    ],
)
def test_rules_that_there_are_not(given, said):
    with pytest.raises(IqvitError, match=said):
        StepRules(**given)


def test_images_of_another_kind_are_refused():
    learner = learner_of()
    with pytest.raises(DataError, match="uint8"):
        learner(drawn(1) / 255)
    with pytest.raises(DataError, match="images are"):
        learner(drawn(1)[..., :8])


def test_taps():
    made = canonical(), calibrated("default")
    learner = ThroughIntegers(*made, taps={"hidden": "blocks_0_mlp_fc1_linear"})
    found = learner(drawn(3))
    assert found.keys() == {"logits", "hidden"}
    assert found["hidden"].shape == (3, 5, 32)
    assert found["hidden"].requires_grad
    assert learner.export().outputs.keys() == {"logits"}
    with pytest.raises(IqvitError, match="no such node"):
        ThroughIntegers(*made, taps={"hidden": "blocks_9"})
