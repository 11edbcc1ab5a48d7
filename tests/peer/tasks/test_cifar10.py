"""CIFAR-10 is read from binary batches or folders of images."""

from pathlib import Path

import numpy as np
import pytest
import torch

from peer.tasks.cifar10 import Cifar10, augmented
from relayswarm.errors import ConfigError, DataError
from relayswarm.task import Site
from tests.peer.tasks.conftest import picture, write_images


def test_binary_batches(cifar_batches: Path) -> None:
    task = Cifar10({"network": "resnet-20"})
    sites = [Site(shard=i, shards=2, data_dir=cifar_batches) for i in range(2)]
    shards = [task.data(site) for site in sites]
    assert [len(shard) for shard in shards] == [50, 50]
    images, labels = task.train_set(sites[0]).inputs, task.train_set(sites[0]).labels
    assert labels.tolist() == list(range(10)) * 10
    assert np.array_equal(images[23].permute(1, 2, 0), picture(3, 32, 32, seed=1))
    torch.manual_seed(0)
    with torch.no_grad():
        measured = task.evaluate(task.model().eval(), sites[0])
    assert measured["accuracy"].weight == 20


def test_a_folder_of_images_gives_what_batches_of_the_same_give(
    cifar_batches: Path, tmp_path: Path
) -> None:
    of_batches = Cifar10().train_set(Site(data_dir=cifar_batches))
    write_images(tmp_path / "files" / "cifar-10" / "train", 10, 1)
    write_images(tmp_path / "files" / "cifar-10" / "test", 10, 1)
    site = Site(data_dir=tmp_path / "files")
    of_files = Cifar10().train_set(site)
    assert torch.equal(of_files.labels, of_batches.labels[:10])
    assert torch.equal(of_files.inputs[torch.arange(10)], of_batches.inputs[:10])
    assert Cifar10().test_set(site).inputs[:3].shape == (3, 3, 32, 32)


def test_a_small_shift_and_a_mirror_and_nothing_else() -> None:
    torch.manual_seed(3)
    images = torch.randint(1, 256, (200, 3, 32, 32), dtype=torch.uint8)
    changed = augmented(images)
    assert changed.shape == images.shape
    assert changed.dtype == torch.uint8
    padded = torch.nn.functional.pad(images, (4, 4, 4, 4))
    seen = set()
    for image, result in zip(padded, changed, strict=True):
        found = [
            (top, left, mirrored)
            for top in range(9)
            for left in range(9)
            for mirrored in (False, True)
            if torch.equal(
                result.flip(2) if mirrored else result,
                image[:, top : top + 32, left : left + 32],
            )
        ]
        assert len(found) == 1
        seen.add(found[0])
    assert len({mirrored for _, _, mirrored in seen}) == 2
    assert {top for top, _, _ in seen} == {left for _, left, _ in seen} == set(range(9))


def test_images_are_augmented_in_training_alone(cifar_batches: Path) -> None:
    task = Cifar10({"network": "resnet-20-evonorm"})
    model = task.model()
    batch = task.data(Site(data_dir=cifar_batches)).batch(torch.arange(8))
    assert len({task.loss(model, batch).item() for _ in range(3)}) == 3
    assert len({task.loss(model.eval(), batch).item() for _ in range(3)}) == 1
    plain = Cifar10({"augment": False})
    assert not plain.is_random
    assert len({plain.loss(model.train(), batch).item() for _ in range(3)}) == 1


def test_says_what_it_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"have data_batch_1\.bin or a folder train.*binary"):
        Cifar10().data(Site(data_dir=tmp_path))
    with pytest.raises(DataError, match="name the folder"):
        Cifar10().data(Site())


def test_the_version_that_can_carry_code_is_named_and_not_read(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"\x80\x04")
    with pytest.raises(DataError, match=r"a format that can carry code; unpack cifar-10-binary"):
        Cifar10().data(Site(data_dir=tmp_path))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (bytes(3072), "holds 3072 bytes, no multiple of 3073"),
        (b"", "holds 0 bytes"),
        (bytes([11]) + bytes(3072), "the class 11, above 9"),
        (None, "cannot be read"),
    ],
)
def test_damaged_batches(cifar_batches: Path, content: bytes | None, problem: str) -> None:
    path = cifar_batches / "data_batch_3.bin"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=rf"data_batch_3\.bin.*{problem}"):
        Cifar10().data(Site(data_dir=cifar_batches))


def test_folders_that_do_not_fit(tmp_path: Path) -> None:
    write_images(tmp_path / "train", 3, 1)
    with pytest.raises(DataError, match="has 3 subfolders"):
        Cifar10().data(Site(data_dir=tmp_path))
    write_images(tmp_path / "large" / "train", 10, 1, sizes=((33, 32),))
    with pytest.raises(DataError, match="33 by 32 pixels, not 32 by 32"):
        Cifar10().data(Site(data_dir=tmp_path / "large"))


def test_an_unknown_network_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"task\.options\.network = 'vgg'.*'vgg-11'"):
        Cifar10({"network": "vgg"})
