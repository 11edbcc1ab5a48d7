"""A text is cut into pieces, of which the last tenth is the test set."""

from pathlib import Path

import pytest
import torch

from peer.tasks.char_lm import CharLm
from relayswarm.errors import ConfigError, DataError
from relayswarm.task import Site

SMALL = {"length": 16, "width": 16, "heads": 2, "layers": 1}


def test_pieces_hold_the_text_and_the_character_after(short_text: Path) -> None:
    text = (short_text / "input.txt").read_bytes()
    task, site = CharLm(SMALL), Site(data_dir=short_text)
    train, test = task.train_set(site), task.test_set(site)
    split = len(text) - len(text) // 10
    assert bytes(train.inputs[3].tolist()) == text[48:65]
    assert bytes(test.inputs[0].tolist()) == text[split : split + 17]
    assert len(train.inputs) == (split - 1) // 16
    assert train.labels.min() == 0
    assert train.labels.max() == 9
    with torch.no_grad():
        measured = task.evaluate(task.model(), site)
    assert measured["loss"].weight == 16 * len(test.inputs)
    assert measured["loss"].value == pytest.approx(5.545, abs=0.3)  # ln 256


def test_a_one_sided_cut_is_by_place_in_the_text(short_text: Path) -> None:
    task = CharLm(SMALL)
    shards = [task.data(Site(shard=i, shards=4, alpha=0.01, data_dir=short_text)) for i in range(4)]
    full = task.train_set(Site(data_dir=short_text))
    assert sum(len(shard) for shard in shards) == len(full.labels)
    parts = [len(shard.tensors[1].unique()) for shard in shards]
    assert max(parts) <= 5


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tiny-shakespeare have input\.txt; put a text file"):
        CharLm().data(Site(data_dir=tmp_path))
    (tmp_path / "input.txt").write_text("too short")
    with pytest.raises(DataError, match="its last tenth has 0 characters, not more than 64"):
        CharLm().data(Site(data_dir=tmp_path))
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError, match="cannot be read"):
        CharLm({"file": "empty.txt"}).data(Site(data_dir=tmp_path))
    with pytest.raises(ConfigError, match="width is no multiple of heads, 3"):
        CharLm({"width": 16, "heads": 3})
