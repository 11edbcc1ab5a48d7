"""A checkpoint comes back whole or is passed over."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from peer.training import files
from peer.training.checkpoint import (
    Checkpoint,
    _checksum,
    export_model,
    forget_later,
    load_all,
    load_latest,
    save,
)
from peer.training.flat import FlatModel
from relayswarm.errors import ConfigError

ROOT = Path(__file__).parents[3]


def checkpoint(step: int = 1, size: int = 4) -> Checkpoint:
    return Checkpoint(
        run_id="run",
        peer="peer-3",
        step=step,
        fingerprint=2**64 - 1,
        tensors={
            "vector": torch.arange(size, dtype=torch.float64) + step,
            "optimizer/0/step": torch.tensor(7.0),
            "random/torch": torch.get_rng_state(),
            "empty": torch.ones(0, 2),
            "half": torch.ones(2, dtype=torch.bfloat16),
            "strided": torch.arange(6).view(2, 3).t(),
        },
        values={"nested": {"none": None, "list": [1, 2.5, "three"]}},
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class TestSaveAndLoad:
    def test_everything_comes_back(self, tmp_path: Path) -> None:
        saved = checkpoint(step=12)
        path = save(tmp_path / "new" / "folder", saved)
        loaded = load_latest(tmp_path / "new" / "folder")
        assert path.exists()
        assert (loaded.run_id, loaded.peer, loaded.step) == ("run", "peer-3", 12)
        assert loaded.fingerprint == 2**64 - 1
        assert loaded.values == saved.values
        assert loaded.tensors.keys() == saved.tensors.keys()
        for name, tensor in saved.tensors.items():
            assert loaded.tensors[name].dtype == tensor.dtype
            assert torch.equal(loaded.tensors[name], tensor)

    def test_more_than_two_are_kept_if_asked_for(self, tmp_path: Path) -> None:
        for step in range(1, 6):
            save(tmp_path, checkpoint(step), kept=3)
        assert [one.step for one in load_all(tmp_path)] == [3, 4, 5]

    def test_what_came_later_is_forgotten_damaged_or_not(self, tmp_path: Path) -> None:
        paths = [save(tmp_path, checkpoint(step), kept=9) for step in range(1, 5)]
        paths[0].write_bytes(b"damaged")
        paths[3].write_bytes(b"damaged")
        forget_later(tmp_path, load_all(tmp_path)[0])
        assert [one.step for one in load_all(tmp_path)] == [2]
        assert names(tmp_path) == [paths[0].name, paths[1].name]

    def test_no_checkpoint_is_none(self, tmp_path: Path) -> None:
        assert load_latest(tmp_path) is None
        assert load_latest(tmp_path / "nowhere") is None

    def test_the_last_two_are_kept(self, tmp_path: Path) -> None:
        for step in range(1, 5):
            save(tmp_path, checkpoint(step))
        assert names(tmp_path) == [
            "checkpoint-00000003.safetensors",
            "checkpoint-00000004.safetensors",
        ]
        assert load_latest(tmp_path).step == 4

    def test_the_latest_is_the_last_written_even_at_an_earlier_step(self, tmp_path: Path) -> None:
        save(tmp_path, checkpoint(step=400))
        save(tmp_path, checkpoint(step=100))
        assert load_latest(tmp_path).step == 100

    def test_other_files_are_left_alone(self, tmp_path: Path) -> None:
        for name in ("notes.txt", "checkpoint-1.safetensors", "checkpoint-latest"):
            (tmp_path / name).write_text("mine")
        for step in range(1, 5):
            save(tmp_path, checkpoint(step))
        assert load_latest(tmp_path).step == 4
        assert {"notes.txt", "checkpoint-1.safetensors", "checkpoint-latest"} <= {*names(tmp_path)}


class TestDamage:
    @pytest.mark.parametrize(
        "spoil",
        [
            lambda _: b"",
            lambda content: content[:5],
            lambda content: content[: len(content) // 2],
            lambda content: content[:-1],
            lambda content: content + b"x",
            lambda content: bytes(len(content)),
            lambda content: content[:-3] + bytes([content[-3] ^ 1]) + content[-2:],
        ],
        ids=["empty", "stub", "half", "one short", "one long", "zeros", "flipped bit"],
    )
    def test_a_damaged_one_falls_back_to_the_one_before(self, tmp_path, caplog, spoil) -> None:
        save(tmp_path, checkpoint(1))
        latest = save(tmp_path, checkpoint(2))
        latest.write_bytes(spoil(latest.read_bytes()))
        with caplog.at_level(logging.WARNING):
            assert load_latest(tmp_path).step == 1
        assert str(latest) in caplog.text

    def test_after_a_fallback_the_next_save_is_the_latest(self, tmp_path: Path) -> None:
        save(tmp_path, checkpoint(1))
        save(tmp_path, checkpoint(2)).write_bytes(b"")
        save(tmp_path, checkpoint(2))
        assert load_latest(tmp_path).step == 2

    def test_all_damaged_is_an_error_not_a_fresh_start(self, tmp_path: Path) -> None:
        save(tmp_path, checkpoint(1)).write_bytes(b"")
        with pytest.raises(ConfigError, match="all its checkpoints are damaged") as caught:
            load_latest(tmp_path)
        assert str(tmp_path) in str(caught.value)

    @pytest.mark.parametrize(
        "header",
        [
            "[]",
            "null",
            '{"schema_version": 1}',
            '{"schema_version": 0}',
            '{"schema_version": 1, "run_id": 7, "peer": "", "step": 1, "fingerprint": 1'
            ', "values": {}}',
            '{"schema_version": 1, "run_id": "", "peer": "", "step": 1, "fingerprint": 1, "x": {}}',
            "[" * 100_000,
        ],
    )
    def test_a_header_that_is_none_is_passed_over(self, tmp_path: Path, header: str) -> None:
        save(tmp_path, checkpoint(1))
        metadata = {"relayswarm": header, "sha256": _checksum({}, header)}
        save_file({}, tmp_path / "checkpoint-00000009.safetensors", metadata)
        assert load_latest(tmp_path).step == 1

    def test_a_foreign_safetensors_file_is_passed_over(self, tmp_path: Path) -> None:
        save(tmp_path, checkpoint(1))
        flat = FlatModel(nn.Linear(1, 1))
        export_model(tmp_path / "checkpoint-00000009.safetensors", flat, {"a": "b"})
        assert load_latest(tmp_path).step == 1

    def test_what_a_crash_left_half_written_is_ignored_and_removed(self, tmp_path: Path) -> None:
        (tmp_path / "checkpoint-00000002.safetensors.partial").write_bytes(b"half")
        save(tmp_path, checkpoint(1))
        assert load_latest(tmp_path).step == 1
        assert names(tmp_path) == ["checkpoint-00000001.safetensors"]

    def test_a_failed_write_leaves_the_old_one(self, tmp_path, monkeypatch) -> None:
        save(tmp_path, checkpoint(1))

        def no_room(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(files, "save_file", no_room)
        with pytest.raises(ConfigError, match="No space left on device"):
            save(tmp_path, checkpoint(2))
        assert load_latest(tmp_path).step == 1

    def test_killed_at_any_moment(self, tmp_path: Path) -> None:
        """A process that saves as fast as it can is killed; a whole checkpoint is found."""
        code = (
            "import sys, torch; from pathlib import Path;"
            "from peer.training.checkpoint import Checkpoint, save\n"
            "for i in range(10**6):\n"
            "    save(Path(sys.argv[1]), Checkpoint('r', 'p', i, 0, {'v': torch.full((9999,), i)}))"
            "\n    print(i, flush=True)"
        )
        command = [sys.executable, "-c", code, str(tmp_path)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            reported = [int(process.stdout.readline()) for _ in range(20)]
            process.kill()
            reported += [int(line) for line in process.stdout]
        found = load_latest(tmp_path)
        assert found.step in (reported[-1], reported[-1] + 1)
        assert found.tensors["v"].unique().tolist() == [found.step]


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written") as caught:
        save(tmp_path / "file", checkpoint())
    assert caught.value.field == "checkpoint directory"


@pytest.mark.parametrize("field", ["run_id", "peer", "fingerprint"])
def test_a_checkpoint_of_something_else_is_refused(field: str) -> None:
    wanted = {"run_id": "run", "peer": "peer-3", "fingerprint": 2**64 - 1}
    checkpoint().require(**wanted)
    wanted[field] = "other" if field != "fingerprint" else 5
    with pytest.raises(ConfigError) as caught:
        checkpoint().require(**wanted)
    assert caught.value.field == f"checkpoint {field}"


class TestExport:
    def test_a_model_of_the_same_class_loads_it(self, tmp_path: Path) -> None:
        model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2, bias=False))
        model[2].weight = model[0].weight  # tied
        model[0].bias.requires_grad_(False)
        export_model(tmp_path / "a" / "model.safetensors", FlatModel(model), {"task": "t"})
        tensors = load_file(tmp_path / "a" / "model.safetensors")
        other = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2, bias=False))
        other[2].weight = other[0].weight
        other.load_state_dict(tensors)
        assert all(
            torch.equal(a, b)
            for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True)
        )


@settings(max_examples=20)  # each is synced to the disk
@given(fingerprint=st.integers(0, 2**64 - 1), peer=st.text(), step=st.integers(0, 2**53))
def test_any_identity_survives(tmp_path_factory, fingerprint: int, peer: str, step: int) -> None:
    folder = tmp_path_factory.mktemp("checkpoints")
    save(folder, Checkpoint("r", peer, step, fingerprint))
    loaded = load_latest(folder)
    assert (loaded.peer, loaded.step, loaded.fingerprint) == (peer, step, fingerprint)
