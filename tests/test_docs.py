"""The pages of docs/: links lead somewhere, tables and lists are those of the code, the API builds.

Their code blocks run in docs/conftest.py.
"""

import importlib.util
import inspect
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

import iqvit
from iqvit.canonical import REMEDIES
from iqvit.models.from_file import KEYS
from iqvit.models.spec import SOURCES

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in DOCS.glob("*.md"))
LINKED = [*PAGES, "README.md", "CONTRIBUTING.md", "benchmarks/README.md"]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
OWN = DOCS / "bring_your_model.md"


def script(name: str):
    """A script of docs/ as a module."""
    title = f"docs_{name}"
    if title not in sys.modules:
        found = importlib.util.spec_from_file_location(title, DOCS / f"{name}.py")
        assert found is not None
        assert found.loader is not None
        sys.modules[title] = importlib.util.module_from_spec(found)
        found.loader.exec_module(sys.modules[title])
    return sys.modules[title]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", CODE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead_links(page: Path) -> list[str]:
    dead = []
    for link in LINK.findall(CODE.sub("", page.read_text())):
        if re.match(r"\w+:", link):
            continue
        place, _, anchor = link.partition("#")
        target = page.parent / place if place else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    return dead


@pytest.mark.parametrize("page", LINKED)
def test_links_lead_somewhere(page):
    assert dead_links(ROOT / page) == []


def test_dead_links_are_found(tmp_path):
    (tmp_path / "there.md").write_text("# A heading, 2\n")
    text = (
        "[a](there.md) [b](there.md#a-heading-2) [c](absent.md) [d](there.md#b) [e](https://x.y)\n"
    )
    (tmp_path / "page.md").write_text(text + "# Own\n[f](#own) [g](#other)\n")
    assert dead_links(tmp_path / "page.md") == ["absent.md", "there.md#b", "#other"]


def test_every_page_is_in_the_index():
    linked = LINK.findall((DOCS / "index.md").read_text())
    assert {Path(page).name for page in PAGES} - {"index.md"} <= set(linked)
    assert "docs/index.md" in LINK.findall((ROOT / "README.md").read_text())


@pytest.mark.parametrize("page", PAGES)
def test_tables_are_those_of_the_code(page):
    text = (ROOT / page).read_text()
    assert script("tables").renewed(text) == text, "run python docs/tables.py"


def test_every_table_is_shown():
    shown = re.findall(r"<!-- table (\w+) -->", "".join((ROOT / p).read_text() for p in PAGES))
    assert sorted(shown) == sorted(script("tables").TABLES)


def test_every_source_of_models_and_key_of_a_file_is_named():
    text = OWN.read_text()
    assert [name for name in SOURCES if f"`{name}:" not in text] == []
    assert [key for key in KEYS if f"`{key}`" not in text] == []


def spellings() -> list[str]:
    """The expressions that the page says one may write."""
    table = OWN.read_text().partition("| of | you may write |")[2].partition("\n\n")[0]
    return re.findall(r"`([^`]+)`", table)


class Spelled(nn.Module):
    """Every expression over two maps of 8 channels and 6 x 6 cells."""

    def __init__(self, expressions: list[str]) -> None:
        super().__init__()
        self.x, self.y = nn.Conv2d(3, 8, 2, 2), nn.Conv2d(3, 8, 2, 2)
        self.code = [compile(text, "<page>", "eval") for text in expressions]

    def forward(self, image):
        names = {"x": self.x(image), "y": self.y(image), "torch": torch, "functional": functional}
        return tuple(eval(code, names) for code in self.code)


def test_every_spelling_that_is_shown_converts():
    expressions = spellings()
    assert len(expressions) > 40
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Spelled(expressions).eval()
        images = torch.randint(0, 256, (2, 3, 12, 12), dtype=torch.uint8)
    graph = iqvit.quantize(model, images)
    assert len(graph.outputs) == len(expressions)
    with torch.no_grad():
        wanted = model(normalised(images[:1]))
    found = iqvit.run(graph, images[:1])
    for text, name, exact in zip(expressions, graph.outputs, wanted, strict=True):
        qparams = graph[graph.outputs[name]].qparams
        assert qparams is not None
        if exact.is_floating_point():
            error = (qparams.dequantize(found[name]) - exact).abs().max()
            assert error <= 0.05 * exact.abs().max(), text


def normalised(images: torch.Tensor) -> torch.Tensor:
    mean, std = (
        torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    return (images / 255 - mean) / std


def test_a_remedy_names_an_operator_of_torch():
    assert [name for name in REMEDIES if not hasattr(torch.ops.aten, name)] == []


@pytest.mark.parametrize("name", script("build").PUBLIC)
def test_what_is_public_is_stated_and_described(name):
    module = script("build").public_module(name)
    assert module.__doc__
    assert len(set(module.__all__)) == len(module.__all__)
    for public in module.__all__:
        value = getattr(module, public)
        if inspect.isfunction(value) or inspect.isclass(value):
            assert value.__doc__, f"{name}.{public} has no docstring"
            assert not value.__doc__.startswith(f"{public}("), (
                f"{name}.{public} has only dataclass's"
            )


def test_the_reference_builds(tmp_path):
    written = script("build").build(tmp_path / "site")
    assert all(path.stat().st_size > 0 for path in written)
    index = (tmp_path / "site" / "index.html").read_text()
    assert all(name in index for name in script("build").PUBLIC)
    page = (tmp_path / "site" / "iqvit.html").read_text()
    assert all(f'id="{name}"' in page for name in iqvit.__all__)
    assert "TypeError" not in page
