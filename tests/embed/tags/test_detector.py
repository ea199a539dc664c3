"""Detectors: torchvision's on random weights, which class sets which tag, faults."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest

from lmk.embed.errors import DownloadError, ModelError, UsageError
from lmk.embed.tables.csv_file import MAX_CELL
from lmk.embed.tags.detector import SsdLite, read_classes, tag_of_class


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of the network, twice: .pth and .safetensors."""
    import torch
    from safetensors.torch import save_file
    from torchvision.models.detection import ssdlite320_mobilenet_v3_large

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
    path = tmp_path_factory.mktemp("ssd") / "ssd.pth"
    torch.save(network.state_dict(), path)
    save_file(network.state_dict(), path.with_suffix(".safetensors"))
    return path


def test_boxes_of_both_kinds_of_file(weights: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (320, 320, 3), np.uint8)
    detector = SsdLite(str(weights))
    boxes = detector.boxes(picture)
    assert boxes
    assert boxes == SsdLite(str(weights.with_suffix(".safetensors"))).boxes(picture)
    assert [box.score for box in boxes] == sorted((box.score for box in boxes), reverse=True)
    for box in boxes:
        left, top, right, bottom = box.corners
        assert 0 <= left <= right <= 1
        assert 0 <= top <= bottom <= 1
        assert 0 < box.score < 1
    assert len(detector.labels) == 80
    assert detector.size == 320


def test_weights_that_will_not_do(tmp_path: Path) -> None:
    import torch

    with pytest.raises(ModelError, match="no such file"):
        SsdLite(str(tmp_path / "none.pth"))
    for name in ("bad.pth", "bad.safetensors"):
        (tmp_path / name).write_bytes(b"not weights")
        with pytest.raises(ModelError, match="cannot be read as weights"):
            SsdLite(str(tmp_path / name))
    for other in ({"a": torch.zeros(1)}, [torch.zeros(1)]):
        torch.save(other, tmp_path / "other.pth")
        with pytest.raises(ModelError, match=r"no weights (of ssdlite320|by name)"):
            SsdLite(str(tmp_path / "other.pth"))


def test_the_hub_is_asked_only_when_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models.detection import SSDLite320_MobileNet_V3_Large_Weights as Published

    def offline(*_: Any, **options: Any) -> None:
        assert options["check_hash"]
        raise URLError("no network")

    monkeypatch.setattr(Published, "get_state_dict", offline)
    with pytest.raises(DownloadError, match="no network"):
        SsdLite("hub")


def test_a_class_sets_the_tag_of_its_name() -> None:
    assert tag_of_class(("traffic light", "cat", "dog"), ("traffic_light", "cat")) == {
        "traffic light": "traffic_light", "cat": "cat",
    }  # fmt: skip
    assert tag_of_class(("cat", "dog"), ("cat",), {"dog": "pet"}) == {"dog": "pet"}
    with pytest.raises(UsageError, match="knows no 'zebra'"):
        tag_of_class(("cat",), ("cat",), {"zebra": "cat"})


def test_classes_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "classes.csv"
    path.write_text("class,tag\ncell phone,phone\ncat,pet\n")
    assert read_classes(path) == {"cell phone": "phone", "cat": "pet"}
    path.write_text("Class;Tag\ntraffic light;traffic light\n")
    assert read_classes(path) == {"traffic light": "traffic_light"}
    for text, why in (
        ("a,b\n", "no column 'class' or 'tag'"),
        ("class,tag\ncat,pet\ncat,animal\n", "twice"),
        ("class,tag\ncat\n", "empty"),
    ):
        path.write_text(text)
        with pytest.raises(UsageError, match=why):
            read_classes(path)
    with pytest.raises(UsageError, match="no such file"):
        read_classes(tmp_path / "none.csv")


def test_a_cell_that_csv_refuses(tmp_path: Path) -> None:
    path = tmp_path / "classes.csv"
    path.write_text("class,tag\ncat," + "p" * (MAX_CELL + 1) + "\n")
    with pytest.raises(UsageError, match="line 2: not a CSV row: field larger than field limit"):
        read_classes(path)
