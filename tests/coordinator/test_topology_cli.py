"""`relayswarm topology`, as a user meets it: output, exit codes, one line about what is wrong."""

import json
from pathlib import Path

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from coordinator.topology_cli import topology


def invoke(*arguments: object) -> Result:
    app = typer.Typer()
    app.command()(topology)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def answer(*arguments: object) -> dict[str, object]:
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)  # type: ignore[no-any-return]


def test_json_of_a_chain() -> None:
    assert answer("--graph", "chain", "--peers", 16) == {
        "root": 0,
        "trees": [
            {"edges": [[i, i + 1] for i in range(15)], "diameter": 15, "lr_factor": "43/8"},
        ],
    }


def test_json_of_a_file_keeps_its_labels(tmp_path: Path) -> None:
    file = tmp_path / "net.txt"
    file.write_text("10 30 4\n30 20 2\n20 10 9\n20 45\n")
    for arguments in (("--graph-file", file), ("--graph", "file", "--graph-file", file)):
        assert answer(*arguments) == {
            "root": 10,
            "trees": [
                {"edges": [[10, 30], [20, 30], [20, 45]], "diameter": 3, "lr_factor": "3/2"},
            ],
        }


def test_double_binary_trees_are_two() -> None:
    by_tree = answer("--graph", "complete", "--peers", 12, "--tree", "double-binary-trees")
    by_graph = answer("--graph", "double-binary-trees", "--peers", 12)
    assert by_tree == by_graph
    assert len(by_tree["trees"]) == 2  # type: ignore[arg-type]
    elected = answer("--graph", "double-binary-trees", "--peers", 12, "--tree", "spanning-tree")
    assert len(elected["trees"]) == 1  # type: ignore[arg-type]


def test_options_reach_the_random_graphs() -> None:
    regular = ("--graph", "random-regular", "--peers", 20)
    assert answer(*regular, "--seed", 1) == answer(*regular, "--seed", 1)
    assert answer(*regular, "--seed", 1) != answer(*regular, "--seed", 2)
    assert answer(*regular, "--degree", 19) == answer("--graph", "complete", "--peers", 20)
    dense = answer("--graph", "erdos-renyi", "--peers", 20, "--probability", 1)
    assert dense == answer("--graph", "complete", "--peers", 20)


def test_social_network_knows_its_size() -> None:
    assert answer("--graph", "social-network") == answer("--graph", "social-network", "--peers", 32)


def test_text_shows_the_tree_and_its_facts(tmp_path: Path) -> None:
    file = tmp_path / "net.txt"
    file.write_text("1 2 4\n2 3\n2 5\n")
    result = invoke("--graph-file", file)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "4 peers, 3 edges in the graph; diameter 2, at most 3 neighbours, "
        "learning-rate factor 11/8 = 1.375",
        "1 (root)",
        "└── 2 (cost 4)",
        "    ├── 3",
        "    └── 5",
    ]


def test_text_is_as_wide_as_the_tree_is_deep() -> None:
    lines = invoke("--graph", "chain", "--peers", 60).stdout.splitlines()
    assert [line.split()[-1] for line in lines[2:]] == [str(peer) for peer in range(1, 60)]


@pytest.mark.parametrize("arguments", [("--graph", "torus", "--peers", "9")])
def test_png_is_a_picture(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    picture = tmp_path / "torus.png"
    result = invoke(*arguments, "--png", picture)
    assert (result.exit_code, result.stdout) == (0, "")
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("0 1\n2 3\n", "disconnected, in 2 parts: {0 1}, {2 3}"),
        ("0 1\n1 1\n", "a peer has no edge to itself"),
        ("0 1 0\n", "the cost 0 is not a positive integer"),
    ],
)
def test_bad_files_end_with_code_2_and_one_line(tmp_path: Path, content: str, says: str) -> None:
    file = tmp_path / "net.txt"
    file.write_text(content)
    result = invoke("--graph-file", file, "--json")
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert says in result.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "--graph = None: no graph given; give --graph NAME or --graph-file"),
        (("--graph", "ring"), "--peers = None: the number of peers is missing; give --peers N"),
        (("--graph", "rng", "--peers", "4"), "did you mean ring?"),
        (("--graph", "file", "--peers", "4"), "give the file (--graph-file)"),
        (("--graph", "torus", "--peers", "7"), "peers = 7: a torus"),
        (("--graph", "ring", "--graph-file", "x"), "--graph = 'ring': a graph file is given too"),
        (("--graph-file", "absent"), "graph file = 'absent': No such file"),
        (("--graph", "ring", "--peers", "8", "--tree", "double-binary-trees"), "lacks the edge"),
        (("--graph", "ring", "--peers", "4", "--png", "/no/where.png"), "--png = '/no/where.png'"),
    ],
)
def test_bad_usage_ends_with_code_2_and_one_line(arguments: tuple[str, ...], says: str) -> None:
    result = invoke(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert says in result.stderr


def test_a_file_decides_how_many_peers_there_are(tmp_path: Path) -> None:
    file = tmp_path / "net.txt"
    file.write_text("0 1\n")
    assert invoke("--graph-file", file, "--peers", 2).exit_code == 0
    result = invoke("--graph-file", file, "--peers", 3)
    assert result.exit_code == 2
    assert "--peers = 3: net.txt has 2 peers; leave it out" in result.stderr
