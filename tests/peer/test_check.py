"""`check` and what it tries out: each mistake in a task is told by its line."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from peer import cli
from peer.localswarm import session
from peer.newtask.command import write_task
from peer.rehearsal import rehearse
from relayswarm import config as run_config
from relayswarm.errors import ConfigError, ExitCode, TaskError

LOSS = "return F.cross_entropy(model(x), y)"
MODEL = "return nn.Sequential(nn.Linear(30, width), nn.ReLU(), nn.Linear(width, 2))"
DATA = "return TensorData(x[mine], y[mine], notes=cut.notes)"
RETURNED = "return {\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new task; paths in messages count from its parent."""
    monkeypatch.chdir(tmp_path)
    write_task(Path("mine"))
    return tmp_path / "mine"


def change(folder: Path, before: str, after: str) -> int:
    """Replace a piece of task.py, which is there once; returns the line it begins in."""
    path = folder / "task.py"
    text = path.read_text()
    assert text.count(before) == 1, before
    path.write_text(text.replace(before, after))
    return text[: text.index(before)].count("\n") + 1


def tried(folder: Path, *overrides: str) -> Any:
    return rehearse(run_config.load(folder / "run.toml", overrides), None, "cpu")


# --- what is wrong ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mistake:
    """What is put in the place of a piece of the task, what is said of it, and where: in the line
    that ends in `# here`, or in which `at` stands."""

    piece: str
    instead: str
    message: str
    at: str = "# here"


MISTAKES = {
    "shapes": Mistake(
        MODEL,
        MODEL.replace("30", "31"),
        r"task.loss = 'return F.cross_entropy\(model\(x\), y\)': RuntimeError: mat1 and mat2 "
        r"shapes cannot be multiplied \(32x30 and 31x32\); mend that line; "
        r"the batch is \(float32 \(32, 30\), int64 \(32,\)\)",
        at=LOSS,
    ),
    "loss of each sample": Mistake(
        LOSS,
        'return F.cross_entropy(model(x), y, reduction="none")  # here',
        r"task.loss = 'shape \(32,\)': not a scalar with a gradient; return its mean",
    ),
    "loss without a gradient": Mistake(
        LOSS,
        "return F.cross_entropy(model(x), y).detach()  # here",
        "task.loss = .*: not a scalar with a gradient; compute it .* without item",
    ),
    "loss as a number": Mistake(
        LOSS,
        "return F.cross_entropy(model(x), y).item()  # here",
        "task.loss = 'float': not a tensor: .*; return the mean loss",
    ),
    "loss at the second of two returns": Mistake(
        LOSS,
        """if len(x) == 1:
            return F.cross_entropy(model(x), y)
        return F.cross_entropy(model(x), y)[None]  # here""",
        "not a scalar with a gradient",
    ),
    "loss that nothing returns": Mistake(
        LOSS, "F.cross_entropy(model(x), y)  # here", "task.loss = 'NoneType': not a tensor"
    ),
    "loss not finite": Mistake(
        LOSS,
        "return F.cross_entropy(model(x), y) * float('nan')  # here",
        "task.loss = nan: not finite in the first step",
    ),
    "loss with other arguments": Mistake(
        "def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor])",
        "def loss(self, model)",
        r"task.loss = '\(model\)': too many positional arguments; "
        r"write def loss\(self, model, batch\)",
        at="def loss",
    ),
    "loss that cannot be differentiated": Mistake(
        LOSS,
        """z = model(x)
        w = z.exp()
        loss = (w * z).mean()
        w.zero_()
        return loss  # here""",
        "task.loss = 'return loss  # here': RuntimeError: one of the variables needed for gradi",
    ),
    "a function of one's own that fails": Mistake(
        LOSS,
        """return self.mine(model(x))

    def mine(self, logits):
        return logits.nothing()  # here""",
        "task.loss = 'return logits.nothing.*': AttributeError: 'Tensor' object has no",
    ),
    "no model": Mistake(MODEL, "nn.Linear(30, width)  # here", "task.model = 'NoneType': not a"),
    "model of two types": Mistake(
        MODEL,
        MODEL.replace("nn.Linear(width, 2)", "nn.Linear(width, 2).double()") + "  # here",
        "task.model = '2.weight': is torch.float64 while 0.weight is torch.float32",
    ),
    "model without parameters": Mistake(
        MODEL, "return nn.Flatten()  # here", "task.model = 'Flatten': has no trainable parameter"
    ),
    "model that draws from elsewhere": Mistake(
        MODEL,
        f"torch.seed()\n        {MODEL}  # here",
        "task.model = 'random': called again from the same seed it gave another model",
    ),
    "no data": Mistake(
        DATA, "TensorData(x[mine], y[mine])  # here", "task.data = 'NoneType': no data of a shard"
    ),
    "data of one shard empty": Mistake(
        DATA,
        """few = mine if site.shard != 2 else mine[:0]
        return TensorData(x[few], y[few])  # here""",
        r"task.data = \[0, 0\]: tensors empty or of unequal length",
    ),
    "data of one shard empty, of a class of its own": Mistake(
        DATA,
        """class Mine(TensorData):
            def __len__(self):
                return 0 if site.shard == 3 else 100
        return Mine(x[mine], y[mine])  # here""",
        "task.data = 0: shard 3 of 4 has no samples; give every shard one, or use fewer data.sha",
    ),
    "data that differ each time": Mistake(
        DATA,
        """noise = torch.Generator()
        noise.seed()
        return TensorData(x[mine] + torch.rand(1, generator=noise), y[mine])  # here""",
        "task.data = .*: called again for the same shard it gave other samples",
    ),
    "evaluate gives numbers": Mistake(
        RETURNED,
        'return {"accuracy": 0.5}  # here\n        return {\n',
        "task.evaluate.accuracy = 'float': not a relayswarm.Measured: 0.5; return a dict such as",
    ),
    "evaluate gives an empty dict": Mistake(
        RETURNED,
        "return {}  # here\n        return {\n",
        "task.evaluate = {}: nothing is measured",
    ),
    "evaluate gives None": Mistake(
        RETURNED,
        "return None  # here\n        return {\n",
        "task.evaluate = 'NoneType': no dict of measurements by name",
    ),
    "evaluate gives words": Mistake(
        RETURNED,
        'return {"loss": Measured("low")}  # here\n        return {\n',
        "task.evaluate.loss = 'Measured': not a number and a weight",
    ),
    "evaluate gives a weight that is none": Mistake(
        RETURNED,
        'return {"loss": Measured(1.0, weight=-1)}  # here\n        return {\n',
        "task.evaluate.loss.weight = -1.0: no weight",
    ),
    "evaluate fails": Mistake(
        "logits = model(x)",
        "logits = model(x.double())  # here",
        "task.evaluate = 'logits = model.*': RuntimeError: ",
    ),
    "evaluate missing": Mistake(
        "def evaluate", "def evaluated", "task = 'Mine': lacks evaluate", at="class Mine(Task)"
    ),
    "an optimizer that there is not": Mistake(
        '{"name": "sgd", "lr": 0.1, "momentum": 0.9, "schedule": "cosine"}',
        '{"name": "sgdd"}  # here',
        "task.optimizer_defaults.name = 'sgdd': input should be 'sgd', 'adam' or 'adamw'",
    ),
    "a gradient in closed form that is wrong": Mistake(
        LOSS,
        f"""{LOSS}

    def gradients(self, model, batch):
        gradients = [torch.ones_like(one) for one in model.parameters()]
        return self.loss(model, batch), gradients  # here""",
        "task.gradients = 0: parameter 0 differs from autograd's by",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_by_its_line(folder: Path, mistake: Mistake) -> None:
    change(folder, mistake.piece, mistake.instead)
    text = (folder / "task.py").read_text()
    line = text[: text.index(mistake.at)].count("\n") + 1
    with pytest.raises(TaskError, match=mistake.message) as caught:
        tried(folder)
    assert caught.value.place == f"mine/task.py:{line}"


def test_the_command_ends_with_2_and_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = change(folder, LOSS, 'return F.cross_entropy(model(x), y, reduction="none")')
    assert relayswarm("check", "mine/run.toml") == ExitCode.USAGE
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(
        f"error: mine/task.py:{line}: task.loss = 'shape (32,)': not a scalar"
    )
    assert told.err.count("\n") == 1


def relayswarm(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    return int(ended.value.code or 0)


@pytest.mark.parametrize("command", ["up", "simulate"])
def test_a_mistake_is_found_before_a_run_begins(folder: Path, command: str, tmp_path: Path) -> None:
    """Also one that would show at the end only."""
    change(folder, "logits = model(x)", "logits = model(x.double())")
    run = session.up if command == "up" else session.simulate
    with pytest.raises(TaskError, match=r"^mine/task.py:"):
        run(run_config.load(folder / "run.toml"), session.SessionOptions(tmp_path / "report"))
    assert not (tmp_path / "report").exists()


def test_a_settings_fault_is_not_the_tasks(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"^data.shards = 100: at 16 samples each") as caught:
        tried(folder, "data.shards=100")
    assert not isinstance(caught.value, TaskError)


@pytest.mark.usefixtures("folder")
def test_settings_are_checked_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert relayswarm("check", "mine/run.toml", "--algorithm", "relay") == ExitCode.USAGE
    assert "algorithm.name = 'relay'" in capsys.readouterr().err


# --- what is told of a task that is well --------------------------------------------------------


def test_what_is_found(folder: Path) -> None:
    found = tried(folder)
    assert found.parameters == found.elements == 30 * 32 + 32 + 32 * 2 + 2
    assert found.model_bytes == found.message_bytes == 4 * found.parameters
    assert len(found.samples) == 4
    assert sum(found.samples) == 455
    assert 0 < found.seconds_per_step < 1
    assert found.optimizer.lr == 0.1
    assert found.warnings == ()
    assert set(found.metrics) == {"loss", "accuracy"}


def test_data_need_not_be_such_as_can_be_pickled(folder: Path, tmp_path: Path) -> None:
    """Each process makes its own; none is handed from one to another."""
    change(
        folder,
        DATA,
        """import pickle
        import threading

        class Mine(TensorData):
            lock = threading.Lock()
            decode = staticmethod(lambda row: row)

            def batch(self, indices):
                with self.lock:
                    return tuple(self.decode(part) for part in super().batch(indices))
        found = Mine(x[mine], y[mine])
        found.lock = threading.Lock()
        try:
            pickle.dumps(found)
        except (TypeError, AttributeError):
            return found""",
    )
    assert tried(folder).warnings == ()
    config = run_config.load(folder / "run.toml", ["steps=4", "evaluation.every=2"])
    options = session.SessionOptions(tmp_path / "report", as_json=True)
    assert session.simulate(config, options) == ExitCode.DONE


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ((), 4),
        (("transport.wire_format=bfloat16",), 2),
        (("transport.wire_format=lattice",), 1),
        (("algorithm.name=swarmsgd", "algorithm.quantize=lattice"), 1),
    ],
)
def test_bytes_in_a_message(folder: Path, settings: tuple[str, ...], size: int) -> None:
    found = tried(folder, *settings)
    assert found.message_bytes == size * found.elements


@pytest.mark.usefixtures("folder")
def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert relayswarm("check", "mine/run.toml", "--steps", "1000") == 0
    told = capsys.readouterr()
    assert told.err == ""
    for part in (
        "1,058 parameters",
        "4,232 (float32), 4,232 in a message",
        "4 shards of ",
        "for 1 local step",
        "sgd, lr 0.1, momentum 0.9, cosine",
        "relaysgd, 4 peers, 1,000 steps, batches of 32",
        "spanning-tree on ring: diameter 3, at most 2 neighbours",
        "at most 7 times what is shared, 29,624 bytes, beside training",
        "6,348 bytes a step (1.5 models), the busiest peer 8,464 (2)",
    ):
        assert part in told.out


@pytest.mark.usefixtures("folder")
def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert relayswarm("check", "mine/run.toml", "--json", "--peers", "3") == 0
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert (found["event"], found["parameters"], found["config"]["peers"]) == ("checked", 1058, 3)
    assert found["topology"]["diameter"] == 2


@pytest.mark.usefixtures("folder")
def test_of_a_part_of_the_model_at_a_rate(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("mine/run.toml", "--set", 'share.include=["2.*"]', "--bandwidth", "8k")
    assert relayswarm("check", *words) == 0
    told = capsys.readouterr().out
    assert "1,058 parameters, 66 of them shared" in told
    assert "264 (float32), 264 in a message" in told
    assert "7 times what is shared, 1,848 bytes" in told
    assert "396 bytes a step (1.5 models), the busiest peer 528 (2)" in told
    assert "at 0.008 Mbit/s " in told
    assert "training, and 528 ms of transfer after it" in told
    assert relayswarm("check", *words, "--json") == 0
    exchanges = json.loads(capsys.readouterr().out)["exchanges"]
    assert exchanges["transfer_seconds"] == pytest.approx(0.528)
    assert exchanges["bytes_sent_per_step"] == {"mean": 396, "largest": 528}


def test_what_may_not_be_meant_is_a_warning(folder: Path) -> None:
    change(folder, LOSS, "return F.cross_entropy(model[2](torch.zeros(len(x), 32)), y) * 0 + 1")
    found = tried(folder)
    (warning,) = found.warnings
    assert warning == "the loss depends on these parameters in no way: 0.weight, 0.bias"


def test_a_rate_that_is_too_high_is_a_warning(folder: Path) -> None:
    change(folder, LOSS, "return F.mse_loss(model(x)[:, 0] ** 3, y.float())")
    found = tried(folder, "optimizer.lr=1000")
    assert any("lower optimizer.lr = 1000" in warning for warning in found.warnings)


def test_what_is_measured_before_averaging_counts_among_the_metrics(folder: Path) -> None:
    more = ", ".join(f'"m{k}": Measured(0.0, weight=1)' for k in range(15))
    change(folder, RETURNED, f"return {{\n            {more},\n")
    assert tried(folder).warnings == ()
    (warning,) = tried(folder, "evaluation.before_averaging=true").warnings
    assert "of 34 metrics the swarm's mean is known of the first 32" in warning


@pytest.mark.parametrize("name", ["digits", "quadratics"])
def test_built_in_tasks_can_be_tried_too(name: str) -> None:
    found = rehearse(run_config.parse("", [f"task.name={name}", "peers=3"]), None, "cpu")
    assert found.warnings == ()
