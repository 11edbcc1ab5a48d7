"""Labelled texts from CSV files, and their tokens."""

import json
from pathlib import Path

import pytest
import torch

from peer.tasks.text_classification import TextClassification
from peer.tasks.text_table import START, hashed
from relayswarm.errors import ConfigError, DataError
from relayswarm.task import Site
from tests.peer.tasks.conftest import WORDS

SMALL = {"length": 16, "width": 16, "heads": 2, "layers": 1, "vocabulary": 256}


def test_reads_both_files(text_table: Path) -> None:
    task, site = TextClassification(SMALL), Site(shards=4, data_dir=text_table)
    assert task.train_set(site).labels.tolist() == [0, 1, 2, 3] * 10
    assert len(task.data(site)) == 10
    title_and_text = task.train_set(site).inputs[0]
    assert (title_and_text == 0).sum() == 16 - (1 + 6 + 8)  # the " " 2 are signs and words, too
    with torch.no_grad():
        assert task.evaluate(task.model(), site)["accuracy"].weight == 12


def test_tokens_know_neither_case_nor_place() -> None:
    tokens = hashed(["Markets fell, markets rose", "", "x " * 50], 1 << 20, 8)
    assert tokens.shape == (3, 8)
    assert tokens[0, 0] == START
    assert tokens[0, 1] == tokens[0, 4]
    assert len(tokens[0, :6].unique()) == 5
    assert tokens[0, 6:].tolist() == [0, 0]
    assert tokens[1].tolist() == [START] + [0] * 7
    assert tokens[2].min() >= 1
    assert hashed(["a b c d"], 16, 8).max() < 16


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('"class","text"\n', "row 1 has the class 'class', not 1 to 4"),
        ('"1","a"\n"5","b"\n', "row 2 has the class '5'"),
        ('"1"\n', "row 1 has 1 columns"),
        ("", "is empty"),
        ('"1","open', "cannot be read"),
        (b"\x1f\x8b\x08 broken", "cannot be read"),
        (b'"1","\xff"', "cannot be read"),
    ],
)
def test_damaged_files(tmp_path: Path, content: str | bytes, problem: str) -> None:
    path = tmp_path / "train.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError, match=rf"train\.csv.*{problem}"):
        TextClassification(SMALL).data(Site(data_dir=tmp_path))


def test_says_what_it_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ag-news have train\.csv or train\.csv\.gz; put it there"):
        TextClassification(SMALL).data(Site(data_dir=tmp_path))


def test_distilbert_needs_its_folder() -> None:
    with pytest.raises(ConfigError, match="go together"):
        TextClassification({"network": "distilbert"})
    with pytest.raises(ConfigError, match="go together"):
        TextClassification({"pretrained": "somewhere"})


@pytest.fixture
def distilbert(tmp_path: Path) -> Path:
    """A tiny DistilBERT, as `save_pretrained` leaves it."""
    transformers = pytest.importorskip("transformers", reason="`make test-integrations` has it")
    folder = tmp_path / "distilbert"
    sizes = {"vocab_size": 30, "dim": 8, "n_heads": 2, "n_layers": 1, "hidden_dim": 16}
    config = transformers.DistilBertConfig(max_position_embeddings=16, **sizes)
    torch.manual_seed(5)
    transformers.DistilBertForMaskedLM(config).save_pretrained(folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *" ".join(WORDS).split(), "a", "the"]
    (folder / "vocab.txt").write_text("\n".join(words))
    kind = {"tokenizer_class": "DistilBertTokenizer", "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind))
    return folder


@pytest.mark.filterwarnings("default")  # what transformers warns of is not ours
def test_distilbert_begins_from_its_folder(text_table: Path, distilbert: Path) -> None:
    options = {"network": "distilbert", "pretrained": str(distilbert), "length": 16}
    task, site = TextClassification(options), Site(data_dir=text_table)
    torch.manual_seed(0)
    model = task.model()
    from safetensors.torch import load_file

    saved = load_file(distilbert / "model.safetensors")
    key = "distilbert.embeddings.word_embeddings.weight"
    assert torch.equal(model.network.state_dict()[key], saved[key])
    tokens = task.data(site).batch(torch.arange(2))[0]
    assert tokens.shape == (2, 16)
    assert tokens[0, 0] == 2  # [CLS]
    loss = task.loss(model, task.data(site).batch(torch.arange(8)))
    loss.backward()
    with torch.no_grad():
        assert task.evaluate(model.eval(), site)["accuracy"].weight == 12


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="`make test-integrations` has it")
    task = TextClassification({"network": "distilbert", "pretrained": str(tmp_path)})
    with pytest.raises(ConfigError, match=r"pretrained = .*no config\.json in it"):
        task.model()


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    task = TextClassification({"network": "distilbert", "pretrained": "x"})
    with pytest.raises(ConfigError, match=r"pip install 'relayswarm\[transformers\]'"):
        task.model()
