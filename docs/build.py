"""Build the API reference from the docstrings: `python docs/build.py` makes docs/site/index.html.

`PUBLIC` are the modules that code outside this repository may use, and of each the names of its
`__all__`: they are what CHANGELOG.md speaks of. Everything else may change without notice. Warnings
are errors.
"""

import argparse
import importlib
import shutil
import warnings
from pathlib import Path
from types import ModuleType

USE = (
    "iqvit",
    "iqvit.errors",
    "iqvit.models.spec",
    "iqvit.tvm_backend",
    "iqvit.tvm_backend.runtime",
    "iqvit.tvm_backend.targets",
    "iqvit.eval.bench",
    "iqvit.eval.evaluate",
    "iqvit.eval.imagenet",
    "iqvit.eval.preprocess",
    "iqvit.training.task",
    "iqvit.training.through_integers",
    "iqvit.training.trainer",
    "iqvit.training.tuning",
)
"""What turns models into programs, runs, scores and trains them."""
EXTEND = (
    "iqvit.arith",
    "iqvit.intgraph",
    "iqvit.inttype",
    "iqvit.ops",
    "iqvit.ops.base",
    "iqvit.tvm_backend.kernels.isa",
)
"""What new operators and targets are made of."""
PUBLIC = (*USE, *EXTEND)
GROUPS = {"To use it": USE, "To extend it": EXTEND}
HERE = Path(__file__).parent
SITE = HERE / "site"


def public_module(name: str) -> ModuleType:
    """A module with its lazy names loaded, as pdoc looks for them."""
    module = importlib.import_module(name)
    for public in module.__all__:
        setattr(module, public, getattr(module, public))
    return module


def build(folder: Path) -> list[Path]:
    """Write the pages to `folder`, which is made anew; returns them."""
    import pdoc.doc
    import pdoc.render

    modules = {name: pdoc.doc.Module(public_module(name)) for name in PUBLIC}
    pdoc.render.configure(docformat="markdown", template_directory=HERE / "templates")
    pdoc.render.env.globals["groups"] = GROUPS
    pages = {
        f"{name.replace('.', '/')}.html": pdoc.render.html_module(m, modules)
        for name, m in modules.items()
    }
    pages["index.html"] = pdoc.render.html_index(modules)
    pages["search.js"] = pdoc.render.search_index(modules)
    shutil.rmtree(folder, ignore_errors=True)
    for name, text in pages.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return [folder / name for name in pages]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=SITE, help="a folder, made anew")
    place = parser.parse_args().output
    warnings.simplefilter("error")
    print(f"{len(build(place))} files in {place}")
