"""lmk: landmark recognition by retrieval.

>>> import lmk
>>> lmk.build_index("gallery/", "gallery.lmk", distractors="other/")  # doctest: +SKIP
>>> with lmk.open("gallery.lmk") as recognizer:  # doctest: +SKIP
...     for answer in recognizer.answer(["photo.jpg"]):
...         print(answer.label, answer.probability)

Every name is imported when it is first used, so that `import lmk` takes milliseconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmk.embed.data.manifest import Manifest, read_manifest
    from lmk.embed.errors import LmkError
    from lmk.embed.extract.embedder import Embedder
    from lmk.embed.train.loop import train
    from lmk.eval.files.submission import Submission
    from lmk.eval.files.truth import Truth
    from lmk.eval.scores.gap import gap
    from lmk.index.gallery.gallery import Gallery
    from lmk.rerank.answers import Answer, Evidence
    from lmk.rerank.indexing.build import build_index
    from lmk.rerank.recognizer import Recognizer
    from lmk.rerank.steps.pipeline import Pipeline

    __version__: str
    open = Recognizer.open  # noqa: A001 - as `lmk.open`

__all__ = [
    "Answer",
    "Embedder",
    "Evidence",
    "Gallery",
    "LmkError",
    "Manifest",
    "Pipeline",
    "Recognizer",
    "Submission",
    "Truth",
    "__version__",
    "build_index",
    "gap",
    "open",
    "read_manifest",
    "train",
]

_MODULES = {
    "Answer": "lmk.rerank.answers",
    "Embedder": "lmk.embed.extract.embedder",
    "Evidence": "lmk.rerank.answers",
    "Gallery": "lmk.index.gallery.gallery",
    "LmkError": "lmk.embed.errors",
    "Manifest": "lmk.embed.data.manifest",
    "Pipeline": "lmk.rerank.steps.pipeline",
    "Recognizer": "lmk.rerank.recognizer",
    "Submission": "lmk.eval.files.submission",
    "Truth": "lmk.eval.files.truth",
    "build_index": "lmk.rerank.indexing.build",
    "gap": "lmk.eval.scores.gap",
    "read_manifest": "lmk.embed.data.manifest",
    "train": "lmk.embed.train.loop",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = import_module("importlib.metadata").version("lmk-landmarks")
    elif name == "open":
        value = import_module("lmk.rerank.recognizer").Recognizer.open
    elif name in _MODULES:
        value = getattr(import_module(_MODULES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
