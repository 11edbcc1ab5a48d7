"""The digits are scikit-learn's, split once and for all, and can be learnt quickly."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from peer.tasks import digits
from peer.tasks.digits import Digits
from peer.training.trainer import Trainer, make_site
from relayswarm.config import parse
from relayswarm.errors import DataError
from relayswarm.task import Site

ROOT = Path(__file__).parents[3]


def test_split_is_stratified_and_complete() -> None:
    task, site = Digits(), Site()
    train, test = task.train_set(site), task.test_set(site)
    assert (len(train.labels), len(test.labels)) == (1438, 359)
    per_class = torch.bincount(test.labels)
    assert (per_class.min(), per_class.max()) == (35, 37)


def test_images_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    theirs = load_digits()
    rows = np.column_stack([theirs.data, theirs.target])
    task, site = Digits(), Site()
    ours = [
        np.column_stack([part.inputs.reshape(-1, 64), part.labels])
        for part in (task.train_set(site), task.test_set(site))
    ]
    assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, np.concatenate(ours).tolist()))


def test_inputs_are_standardised() -> None:
    task = Digits()
    inputs = task.inputs(task.train_set(Site()).inputs)
    assert inputs.shape == (1438, 1, 8, 8)
    assert inputs.dtype == torch.float32
    assert abs(float(inputs.mean())) < 0.01
    assert abs(float(inputs.std()) - 1) < 0.01


def test_loading_does_not_import_scikit_learn() -> None:
    code = (
        "from peer.tasks.digits import Digits; from relayswarm import Site; import sys;"
        "Digits().data(Site()); assert not {m for m in sys.modules if m.startswith('sklearn')}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_missing_scikit_learn_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "find_spec", lambda _: None)
    with pytest.raises(DataError, match="pip install scikit-learn"):
        digits._read_table()


def test_shards_are_reproducible_and_disjoint() -> None:
    task = Digits()
    sites = [Site(shard=i, shards=8, alpha=0.1, min_samples=16, seed=5) for i in range(8)]
    shards = [task.data(site) for site in sites]
    assert sum(map(len, shards)) == 1438
    assert len({shard.digest() for shard in shards}) == 8
    assert task.data(sites[3]).digest() == shards[3].digest()


def test_model_size() -> None:
    assert sum(p.numel() for p in Digits().model().parameters()) == 21_546


def test_one_peer_learns_them() -> None:
    config = parse("", ["peers=1", "steps=150"])
    trainer = Trainer(Digits(), config, make_site(config, 0))
    for step in range(config.steps):
        trainer.train(step)
    measured = trainer.evaluate()
    assert measured["accuracy"].value > 0.95
    assert measured["loss"].weight == 359
