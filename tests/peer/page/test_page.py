"""A report's page: one file with all its pictures in it, that says what the report says."""

from __future__ import annotations

import base64
import json
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from matplotlib.figure import Figure

from peer.outcome import Happening, PeerOutcome
from peer.page import pictures
from peer.page.page import render
from peer.page.pictures import Picture
from peer.page.reading import read_report
from peer.report import Comparison, prepare_directory, write_report
from tests.peer.test_report import BASELINE, PEERS, made_up_peer, made_up_run

Run = Callable[..., int]

VOID = {"meta", "source", "img"}
HAPPENINGS = [
    Happening(0.5, "member_joined", "peer-0", "joined, shard 0"),
    Happening(1.0, "topology", "", "epoch 1 from step 0, 3 peers: quorum"),
    Happening(2.0, "peer_exited", "peer-2", "ended with exit code -9"),
    Happening(3.0, "topology", "", "epoch 2 from step 2, 3 peers: quorum"),
    Happening(4.0, "peer_finished", "peer-0", "finished after 4 steps"),
]


class Page(HTMLParser):
    """What a page is made of. Fails on tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[str] = []
        self.addresses: list[str] = []
        self.alternatives: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        for name in ("src", "srcset", "href", "action", "data", "poster"):
            if name in values:
                self.addresses.append(values[name])
        if tag == "img":
            self.alternatives.append(values["alt"])
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += f"{data} "


def page_of(directory: Path) -> Page:
    return Page((directory / "report.html").read_text(encoding="utf-8"))


def drawing(address: str) -> ET.Element:
    """A `data:` address's picture."""
    kind, _, content = address.partition(",")
    assert kind == "data:image/svg+xml;base64"
    return ET.fromstring(base64.b64decode(content, validate=True))


def shapes(root: ET.Element) -> int:
    return sum(element.tag.endswith(("path", "use", "image")) for element in root.iter())


def write(directory: Path, peers: Sequence[PeerOutcome] = PEERS, **changes: Any) -> Path:
    prepare_directory(directory)
    comparison = Comparison({"accuracy": 0.96}, BASELINE)
    outcome = made_up_run(peers, **({"happenings": HAPPENINGS} | changes))
    write_report(outcome, directory, comparison, ["relayswarm", "up"])
    return directory


def test_everything_is_in_the_one_file(tmp_path: Path) -> None:
    text = (write(tmp_path) / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert len(page.alternatives) >= 5  # accuracy, loss, graph, tree, misses, time line
    assert all(page.alternatives)
    assert len(page.addresses) == 2 * len(page.alternatives)  # for light and for dark
    assert all(shapes(drawing(address)) > 10 for address in page.addresses)
    assert not {"script", "link", "iframe", "a", "form", "object"} & {*page.tags}
    styles = text.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in styles
    assert "@import" not in styles
    assert 'content="width=device-width' in text


def test_light_and_dark_pictures_differ_in_colours_only(tmp_path: Path) -> None:
    page = page_of(write(tmp_path))
    for dark, light in zip(page.addresses[::2], page.addresses[1::2], strict=True):
        first, second = drawing(dark), drawing(light)
        assert shapes(first) == shapes(second)
        assert ET.tostring(first) != ET.tostring(second)


def test_it_says_what_the_report_says(tmp_path: Path) -> None:
    page = page_of(write(tmp_path))
    words = " ".join(page.text.split())
    assert "relaysgd on digits, 3 peers, Dirichlet 0.1" in words
    assert "accuracy, worst peer 80.0%" in words
    assert "accuracy, their mean model 96.0%" in words
    assert "3 of 24 expected messages were missed, 6 of them awaited until a deadline" in words
    assert "The last of 2 epochs of topology: 3 peers, root peer-0, diameter" in words
    assert "2.00 peer-2 ended with exit code -9" in words
    assert "peer-1 4 80.0% 0.1 1 of 8" in words
    assert "peer-2 4 97.0% 0.2 2.5 2 of 8" in words  # with the epsilon of its movements


@pytest.mark.parametrize("levels", [(0.1, 1.0), (0.9775, 0.9792)])  # "100.0%", "97.75%"
def test_no_letter_of_a_picture_is_cut_off(
    monkeypatch: pytest.MonkeyPatch, levels: tuple[float, float]
) -> None:
    figures: list[Figure] = []

    def kept(make: Callable[[], Figure], alt: str) -> Picture:
        figures.append(make())
        return Picture("", "", alt)

    monkeypatch.setattr(pictures, "picture", kept)
    steps = [(k, {"loss": 10.0 ** -(k % 4), "accuracy": levels[k % 2]}) for k in range(1, 9)]
    peers = [replace(made_up_peer(k, levels[0]), evaluations=steps) for k in range(3)]
    outcome = made_up_run(peers, happenings=HAPPENINGS)
    with matplotlib.rc_context(pictures.SVG):
        drawn = [
            *pictures.curves(outcome, BASELINE),
            *pictures.topology(outcome),
            *pictures.losses_of_messages(peers),
            *pictures.time_line(outcome, "seconds"),
        ]
        assert len(drawn) == len(figures) >= 6
        for figure, shown in zip(figures, drawn, strict=True):
            figure.draw_without_rendering()  # what a layout engine moves is in its place
            taken = figure.get_tightbbox()
            assert taken.min.min() >= 0, shown.alt
            assert taken.x1 <= figure.get_figwidth(), shown.alt
            assert taken.y1 <= figure.get_figheight(), shown.alt


def test_no_lost_message_needs_no_picture(tmp_path: Path) -> None:
    peers = [PeerOutcome(f"peer-{k}", 4, {"loss": 1.0}, messages_expected=8) for k in range(3)]
    page = page_of(write(tmp_path, peers, happenings=[]))
    assert "None of 24 expected messages was missed." in page.text
    assert not any("missed" in text or "time line" in text for text in page.alternatives)


def test_what_peers_say_is_text_and_no_markup(tmp_path: Path) -> None:
    evil = '<script>alert("&")</script>'
    happenings = [*HAPPENINGS, Happening(5.0, "peer_exited", "peer-1", evil)]
    directory = write(tmp_path, happenings=happenings)
    page = page_of(directory)
    assert "script" not in page.tags
    assert evil in page.text


def test_the_same_report_gives_the_same_page(tmp_path: Path) -> None:
    directory = write(tmp_path)
    assert render(read_report(directory)) == (directory / "report.html").read_text("utf-8")


def test_a_model_of_many_peers_and_steps_stays_small(tmp_path: Path) -> None:
    losses = [(k, 1.0 + k % 7) for k in range(20_000)]
    peers = [
        PeerOutcome(f"peer-{k}", 20_000, {"loss": 1.0}, losses=losses, messages_expected=1)
        for k in range(3)
    ]
    directory = write(tmp_path, peers)
    assert (directory / "history.json").stat().st_size < 200_000
    assert (directory / "report.html").stat().st_size < 2_000_000
    steps = json.loads((directory / "history.json").read_text())["peers"][0]["steps"]
    assert steps[-1] == 19_999
    assert len(steps) == 500


# --- the command ------------------------------------------------------------------------------


def test_a_simulated_run_with_a_crash_has_its_time_line(relayswarm: Run, tmp_path: Path) -> None:
    crash = "faults.crash=[{peer='peer-2', at_step=8, rejoin_after_s=10}]"
    run = ("--task", "quadratics", "--graph", "complete", "--peers", "4", "--steps", "40")
    settings = ("--set", crash, "--set", "coordinator.lease_s=3", "--set", "evaluation.every=10")
    assert relayswarm("simulate", *run, *settings, "--report", "made", "--no-baseline") == 0
    history = json.loads((tmp_path / "made" / "history.json").read_text())
    assert history["clock"] == "virtual seconds"
    told = [(one["event"], one["peer"]) for one in history["happenings"]]
    crashed, back = told.index(("peer_exited", "peer-2")), told.index(("peer_started", "peer-2"))
    assert told[0] == ("topology", "")
    assert ("topology", "") in told[crashed:back]  # without it
    assert ("topology", "") in told[back:]  # with it again
    times = [one["seconds"] for one in history["happenings"]]
    assert times == sorted(times)
    assert 8 <= times[crashed] < times[back] <= 40
    (tmp_path / "made" / "report.html").unlink()
    assert relayswarm("report", "made", "--output", "page.html") == 0
    assert "time line" in " ".join(Page((tmp_path / "page.html").read_text()).alternatives)
    assert relayswarm("report", "made") == 0
    assert (tmp_path / "made" / "report.html").exists()


def refusal(relayswarm: Run, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert relayswarm("report", *arguments) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("name", ["report.json", "manifest.json", "history.json"])
def test_a_file_that_is_missing_or_newer_is_named(
    relayswarm: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    path = write(tmp_path / "made") / name
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"schema_version": 2}))
    assert f"schema_version in made/{name} = 2: written for a newer release" in refusal(
        relayswarm, capsys, "made"
    )
    path.unlink()
    text = refusal(relayswarm, capsys, "made")
    assert f"REPORT_DIR = 'made': its {name} cannot be read" in text
    assert "give the folder of a report" in text


def test_files_that_do_not_fit_together_are_refused(
    relayswarm: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "made") / "history.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"peers": []}))
    assert "do not fit together" in refusal(relayswarm, capsys, "made")


def test_a_page_that_cannot_be_written_is_told(
    relayswarm: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "made")
    text = refusal(relayswarm, capsys, "made", "--output", "nowhere/page.html")
    assert "--output = 'nowhere/page.html': cannot be written (No such file" in text


def test_a_peer_that_missed_messages_without_a_time_is_drawn(tmp_path: Path) -> None:
    page = page_of(write(tmp_path, [made_up_peer(1, None)]))
    assert sum("missed" in text for text in page.alternatives) == 1
