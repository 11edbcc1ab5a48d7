"""Images of any size by class are read batch by batch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from peer.tasks.image_folder import ImageFolderTask, middle, random_part
from relayswarm.errors import ConfigError, DataError
from relayswarm.task import Site

OPTIONS = {"classes": 2, "size": 32}


def test_reads_a_shard(image_folder: Path) -> None:
    task = ImageFolderTask(OPTIONS)
    sites = [Site(shard=i, shards=3, data_dir=image_folder) for i in range(3)]
    shards = [task.data(site) for site in sites]
    assert [len(shard) for shard in shards] == [8, 8, 8]
    names = [name for shard in shards for name in shard.rows.names]
    assert len(set(names)) == 24
    assert len({shard.digest() for shard in shards}) == 3
    assert task.data(sites[0]).digest() == shards[0].digest()
    torch.manual_seed(0)
    images, labels = shards[0].batch(torch.tensor([0, 5, 7]))
    assert (images.shape, images.dtype) == ((3, 3, 32, 32), torch.uint8)
    assert labels.tolist() == [int("class_1" in shards[0].rows.names[i]) for i in (0, 5, 7)]
    with torch.no_grad():
        measured = task.evaluate(task.model().eval(), sites[0])
    assert measured["accuracy"].weight == 8


def test_a_batch_is_a_function_of_the_random_state(image_folder: Path) -> None:
    shard = ImageFolderTask(OPTIONS).data(Site(data_dir=image_folder))
    indices = torch.arange(10)
    state = torch.get_rng_state()
    first, second = shard.batch(indices)[0], shard.batch(indices)[0]
    torch.set_rng_state(state)
    assert torch.equal(shard.batch(indices)[0], first)
    assert not torch.equal(first, second)


def gradient(width: int, height: int) -> Image.Image:
    """Red grows from left to right, green from top to bottom."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([255 * x // width, 255 * y // height, 0 * x], axis=2)
    return Image.fromarray(pixels.astype(np.uint8))


def test_the_middle_is_seven_eighths_of_the_shorter_side() -> None:
    seen = middle(gradient(200, 100), 32)
    across = [seen.getpixel((x, 16))[0] for x in (0, 31)]
    down = [seen.getpixel((16, y))[1] for y in (0, 31)]
    assert across == pytest.approx([255 * 56.25 / 200, 255 * 143.75 / 200], abs=4)
    assert down == pytest.approx([255 * 6.25 / 100, 255 * 93.75 / 100], abs=6)


def test_a_random_part_is_the_first_try_that_fits() -> None:
    image = gradient(100, 100)
    too_wide, quarter = (1.0, 1.0, 0.0, 0.0), ((0.25 - 0.08) / 0.92, 0.5, 1.0, 0.0)
    seen = random_part(image, 32, [too_wide, quarter, (1, 0.5, 0, 0)], mirrored=False)
    corners = [seen.getpixel((x, y))[:2] for x, y in ((0, 0), (31, 31))]
    assert corners[0] == pytest.approx((255 * 0.5, 0), abs=5)
    assert corners[1] == pytest.approx((255, 255 * 0.5), abs=5)
    mirrored = random_part(image, 32, [too_wide, quarter], mirrored=True)
    assert mirrored.getpixel((31, 0)) == seen.getpixel((0, 0))
    none_fits = random_part(image, 32, [too_wide], mirrored=False)
    assert none_fits.tobytes() == middle(image, 32).tobytes()


def test_a_file_that_is_no_image_is_named(image_folder: Path) -> None:
    (image_folder / "train" / "class_1" / "0003.jpg").write_bytes(b"\xff\xd8 not one")
    shard = ImageFolderTask(OPTIONS).data(Site(data_dir=image_folder))
    with pytest.raises(DataError, match=r"class_1/0003\.jpg.*cannot be read as an image"):
        shard.batch(torch.arange(24))


def test_the_number_of_classes_is_that_of_subfolders(image_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"classes = 1000: .*has 2 subfolders; set it to 2"):
        ImageFolderTask().data(Site(data_dir=image_folder))


def test_training_and_test_classes_must_agree(image_folder: Path) -> None:
    (image_folder / "val" / "class_1").rename(image_folder / "val" / "class_7")
    task = ImageFolderTask(OPTIONS)
    with pytest.raises(DataError, match="other subfolders than train: class_1"):
        task.evaluate(task.model(), Site(data_dir=image_folder))


def test_says_what_it_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has train; give it train/CLASS/NAME\.jpg"):
        ImageFolderTask(OPTIONS).data(Site(data_dir=tmp_path))
    (tmp_path / "train" / "empty").mkdir(parents=True)
    with pytest.raises(DataError, match="its subfolder empty holds no images"):
        ImageFolderTask(OPTIONS).data(Site(data_dir=tmp_path))


@pytest.mark.parametrize("network", ["resnet-18", "resnet-50", "resnet-20-evonorm"])
def test_its_networks(network: str) -> None:
    model = ImageFolderTask({"network": network, "classes": 7}).model().eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 64, 64)).shape == (1, 7)
