from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lmk.embed.errors import GalleryDamaged
from lmk.index.search.settings import SearchSettings


@dataclass
class Saved:
    value: Any
    path: Path = Path("g.lmk")

    def setting(self, name: str) -> Any:
        return self.value if name == "search" else None


def test_settings_are_saved_as_what_was_chosen() -> None:
    settings = SearchSettings("ivf", 0.0, uri="http://h:1")
    assert settings.to_json() == {"kind": "ivf", "recall": 0.0, "uri": "http://h:1"}
    assert SearchSettings.saved(Saved(settings.to_json())) == settings
    assert SearchSettings.saved(Saved(None)) == SearchSettings()


def test_settings_override_others_one_by_one() -> None:
    saved = SearchSettings("ivf", 0.9, "milvus", "http://h:1", "c")
    assert SearchSettings(recall=0.0).over(saved) == SearchSettings(
        "ivf", 0.0, "milvus", "http://h:1", "c"
    )
    assert saved.without_server() == SearchSettings("ivf", 0.9)


@pytest.mark.parametrize("value", ["ivf", [1], {"kind": 1}, {"recall": "x"}, {"recall": True}])
def test_a_setting_of_another_type_is_damage(value: Any) -> None:
    with pytest.raises(GalleryDamaged, match="its setting 'search'"):
        SearchSettings.saved(Saved(value))
