"""Fashion-MNIST is read from IDX files, which must fit together."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from peer.tasks.fashion_mnist import FashionMnist
from relayswarm.errors import ConfigError, DataError
from relayswarm.task import Site


def write(path: Path, values: np.ndarray, pack=bytes) -> None:
    header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(pack(header + values.astype(np.uint8).tobytes()))


def write_set(folder: Path, part: str, labels: list[int], side: int = 28) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(0).integers(0, 256, (len(labels), side, side))
    write(folder / f"{part}-images-idx3-ubyte.gz", images, gzip.compress)
    write(folder / f"{part}-labels-idx1-ubyte", np.array(labels))


@pytest.mark.parametrize("sub", ["", "fashion-mnist"])
def test_reads_the_folder_or_its_subfolder(tmp_path: Path, sub: str) -> None:
    write_set(tmp_path / sub, "train", list(range(10)) * 4)
    write_set(tmp_path / sub, "t10k", list(range(10)))
    task = FashionMnist()
    sites = [Site(shard=i, shards=2, data_dir=tmp_path) for i in range(2)]
    shards = [task.data(site) for site in sites]
    assert [len(shard) for shard in shards] == [20, 20]
    torch.manual_seed(0)
    model = task.model()
    loss = task.loss(model, shards[0].batch(torch.arange(4)))
    assert abs(loss.item() - np.log(10)) < 1
    with torch.no_grad():
        measured = task.evaluate(model, sites[0])
    assert measured["accuracy"].weight == 10
    assert 0 <= measured["accuracy"].value <= 1


def test_needs_a_data_folder() -> None:
    with pytest.raises(DataError, match="name the folder") as caught:
        FashionMnist().data(Site())
    assert caught.value.field == "data_dir"


def test_says_what_it_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has train-images-idx3-ubyte or .*\.gz; download"):
        FashionMnist().data(Site(data_dir=tmp_path))


@pytest.mark.parametrize(
    ("labels", "kept", "side", "problem"),
    [
        ([1, 2, 3], [1, 2], 28, "holds 2 labels for 3 images"),
        ([1, 2], [1, 10], 28, "a class above 9"),
        ([1, 2], [1, 2], 27, "images of shape"),
        ([], [], 28, "is empty"),
    ],
)
def test_files_that_do_not_fit_together(tmp_path, labels, kept, side, problem) -> None:
    write_set(tmp_path, "train", labels, side)
    write(tmp_path / "train-labels-idx1-ubyte", np.array(kept))
    with pytest.raises(DataError, match=problem):
        FashionMnist().data(Site(data_dir=tmp_path))


@pytest.mark.parametrize(("network", "size"), [("pooled", 80_602), ("strided", 80_858)])
def test_model_size(network: str, size: int) -> None:
    model = FashionMnist({"network": network}).model()
    assert sum(p.numel() for p in model.parameters()) == size
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_part_of_the_data_and_samples_held_back(tmp_path: Path) -> None:
    write_set(tmp_path, "train", list(range(10)) * 4)
    write_set(tmp_path, "t10k", list(range(10)))
    site = Site(data_dir=tmp_path)
    task = FashionMnist({"train_samples": 25, "validation": 15})
    trained = {tuple(image.reshape(-1).tolist()) for image in task.data(site).tensors[0]}
    full, chosen = task._measured_on(site)
    held_back = {tuple(i.reshape(-1).tolist()) for i in full.inputs[chosen]}
    assert (len(trained), len(held_back)) == (25, 15)
    assert not trained & held_back
    with torch.no_grad():
        few = FashionMnist({"test_samples": 3}).evaluate(task.model(), site)
    assert few["accuracy"].weight == 3


def test_more_samples_than_there_are(tmp_path: Path) -> None:
    write_set(tmp_path, "train", [0] * 10)
    with pytest.raises(ConfigError, match="10 training samples, of which 4 are held back"):
        FashionMnist({"train_samples": 7, "validation": 4}).data(Site(data_dir=tmp_path))
