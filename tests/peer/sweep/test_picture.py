"""The picture of a sweep: what is drawn, and that nothing is left out in silence."""

from __future__ import annotations

import io

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from peer.sweep.picture import draw


def drawn(rows: list[dict[str, object]], axes: list[str], patch: pytest.MonkeyPatch) -> Figure:
    """The figure that a picture is made from."""
    figures: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, *args: object, **kwargs: object) -> None:
        figures.append(figure)
        save(figure, *args, **kwargs)

    patch.setattr(Figure, "savefig", keep)
    content = draw(rows, axes)
    assert content is not None
    image = matplotlib.image.imread(io.BytesIO(content), format="png")
    assert np.ptp(image[..., :3]) > 0.5
    return figures[0]


def test_a_numeric_axis_gives_lines_of_means(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[dict[str, object]] = [
        {"peers": peers, "algorithm": name, "worst_accuracy": value}
        for peers, name, value in [
            ("4", "a", 0.5),
            ("4", "a", 0.7),
            ("8", "a", 0.9),
            ("8", "b", 0.2),
        ]
    ]
    axes = drawn(rows, ["peers", "algorithm"], monkeypatch).axes[0]
    assert axes.get_xlabel() == "peers"
    assert axes.get_yscale() == "linear"
    means = [np.asarray(line.get_xydata()).tolist() for line in axes.lines[::2]]
    assert means == [[[4.0, 0.6], [8.0, 0.9]], [[8.0, 0.2]]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]


def test_names_give_rows_of_dots_and_losses_a_logarithmic_scale(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows: list[dict[str, object]] = [
        {"graph": "ring", "consensus_suboptimality": 1e-6},
        {"graph": "chain", "consensus_suboptimality": 1e-2},
        {"graph": "chain", "consensus_suboptimality": None},
    ]
    figure = drawn(rows, ["graph"], monkeypatch)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ring", "chain"]
    assert axes.get_xscale() == "log"
    assert figure.get_suptitle() == "1 of 3 runs are not shown: no such number"


def test_without_a_number_there_is_no_picture() -> None:
    assert draw([{"graph": "ring", "worst_accuracy": None}], ["graph"]) is None
