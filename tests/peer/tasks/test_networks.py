"""Networks of the built-in tasks: their known sizes, and what makes each what it is."""

import pytest
import torch

from peer.tasks.evonorm import EvoNormS0
from peer.tasks.resnet import Padding, resnet18, resnet20, resnet50
from peer.tasks.transformer import PADDING, Gpt, TextClassifier
from peer.tasks.vgg import Vgg11


@pytest.mark.parametrize(
    ("network", "size", "side", "classes"),
    [
        (lambda: resnet20(10), 269_722, 32, 10),
        (lambda: resnet18(1000), 11_689_512, 64, 1000),
        (lambda: resnet50(1000), 25_557_032, 64, 1000),
        (lambda: Vgg11(10), 9_225_610, 32, 10),
        # v in place of BatchNorm's gamma and beta alone: 688 more, one for each channel
        (lambda: resnet20(10, evonorm=True), 269_722 + 688, 32, 10),
    ],
    ids=["resnet-20", "resnet-18", "resnet-50", "vgg-11", "resnet-20-evonorm"],
)
def test_sizes_are_the_known_ones(network, size: int, side: int, classes: int) -> None:
    torch.manual_seed(0)
    model = network()
    assert sum(p.numel() for p in model.parameters()) == size
    logits = model(torch.randn(2, 3, side, side))
    assert logits.shape == (2, classes)
    assert not torch.equal(logits[0], logits[1])


def test_networks_without_batch_norm_have_no_buffers() -> None:
    for model in (Vgg11(10), resnet20(10, evonorm=True)):
        assert not list(model.buffers())


def test_evonorm_divides_the_swish_of_a_sample_by_the_deviation_of_its_group() -> None:
    layer = EvoNormS0(4, groups=2)
    with torch.no_grad():
        layer.v.copy_(torch.tensor([0.5, 1, 2, 3]).view(1, 4, 1, 1))
        layer.gamma.fill_(2)
        layer.beta.fill_(-1)
    x = torch.randn(3, 4, 5, 5) * 3 + 1
    y = layer(x)
    for sample in range(3):
        for channel in range(4):
            group = x[sample, 2 * (channel // 2) : 2 * (channel // 2) + 2]
            own, v = x[sample, channel], layer.v.flatten()[channel]
            expected = 2 * own * torch.sigmoid(v * own) / group.std(unbiased=False) - 1
            torch.testing.assert_close(y[sample, channel], expected, rtol=1e-4, atol=1e-4)


def test_the_shortcut_without_parameters_drops_pixels_and_adds_zeros() -> None:
    x = torch.randn(1, 2, 4, 4)
    y = Padding(more=2, stride=2)(x)
    assert torch.equal(y[:, :2], x[:, :, ::2, ::2])
    assert not y[:, 2:].any()


def test_a_gpt_does_not_see_what_comes() -> None:
    torch.manual_seed(0)
    model = Gpt(50, 8, 16, 2, 2)
    text = torch.randint(50, (1, 8))
    other = text.clone()
    other[0, 5] = (text[0, 5] + 1) % 50
    before, after = model(text), model(other)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


def test_padding_has_no_part_in_a_text() -> None:
    torch.manual_seed(0)
    model = TextClassifier(50, 8, 16, 2, 2, 3)
    text = torch.tensor([[1, 7, 9]])
    filled = torch.nn.functional.pad(text, (0, 5), value=PADDING)
    torch.testing.assert_close(model(filled), model(text))
    assert not torch.allclose(model(filled), model(torch.tensor([[1, 7, 9, 9]])))
