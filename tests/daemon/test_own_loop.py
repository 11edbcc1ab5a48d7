"""Programs with a training loop of their own, as peers of a real coordinator.

Each program is a thread of this process here; tests of the examples have real ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peer.simulator.run import simulate
from peer.tasks.registry import load_task
from peer.training.order import DataOrder
from peer.training.trainer import Trainer, make_site
from relayswarm import Measured, Swarm
from relayswarm import config as run_config
from relayswarm.errors import ConfigError, JoinError

OWN = ("task.name=own-loop", "transport.deadline_s=60", "topology.graph=chain")

Program = Callable[[int], Any]

pytestmark = pytest.mark.usefixtures("torch_settings")


def together(program: Program, peers: int) -> list[Any]:
    """What `program(k)` returns for each peer k, each in a thread of its own."""
    with ThreadPoolExecutor(peers) as pool:
        return [done.result() for done in [pool.submit(program, k) for k in range(peers)]]


def line() -> nn.Module:
    """A small model, the same every time."""
    model = nn.Linear(3, 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    return model


def batch(k: int) -> tuple[Tensor, Tensor]:
    """Data of which each peer k has others."""
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(k))
    return x, x.sum(dim=1, keepdim=True) + 0.1 * k


def loss_of(model: nn.Module, k: int) -> Tensor:
    x, y = batch(k)
    return (model(x) - y).square().mean()


def alike(models: list[Mapping[str, Tensor]], tolerance: float) -> bool:
    first, *rest = models
    return all(
        torch.allclose(first[name], other[name], rtol=0, atol=tolerance)
        for other in rest
        for name in first
    )


def test_a_loop_ends_with_the_bits_of_the_same_task_in_the_simulator(
    daemons: Callable[..., Any],
) -> None:
    """Hence of the daemons: with lost messages, local steps, momentum and a corrected rate."""
    common = (
        *("deterministic=true", "peers=4", "steps=15", "data.alpha=0.5", "data.batch_size=8"),
        *("topology.graph=star", "algorithm.local_steps=2", "faults.drop=0.1", "seed=3"),
        *("transport.deadline_s=100", "optimizer.relay_lr_correction=true", "evaluation.every=7"),
        "evaluation.before_averaging=true",
    )
    sgd = ("optimizer.name=sgd", "optimizer.lr=0.05", "optimizer.momentum=0.9")
    task = run_config.parse("", [*common, *sgd, "optimizer.schedule=constant", "task.name=digits"])
    task = task.model_copy(
        update={
            "optimizer": task.optimizer.model_copy(update={"nesterov": False, "warmup_steps": 0})
        }
    )
    swarm = daemons(*common, "task.name=own-loop", start=False)

    sites = [make_site(task, k, None, f"peer-{k}") for k in range(4)]
    rigs = [Trainer(load_task(task.task), task, site) for site in sites]

    def program(k: int) -> tuple[dict[str, Tensor], dict[str, float]]:
        rig = rigs[k]
        model = rig.flat.module
        order = DataOrder(task.seed, k, len(rig.data), task.data.batch_size)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        draw = 0
        with Swarm(
            model,
            optimizer,
            swarm.address,
            peer_id=f"peer-{k}",
            evaluate=lambda model: rig.task.evaluate(model, rig.site),
        ) as member:
            assert member.site == rig.site
            while not member.finished:
                optimizer.zero_grad()
                rig.task.loss(model, rig.data.batch(order.indices(draw))).backward()
                member.step()
                draw += 1
        assert member.step_number == 15
        assert draw == 30
        assert optimizer.param_groups[0]["lr"] == 0.05
        return {name: tensor.clone() for name, tensor in model.state_dict().items()}, member.means()

    ended = together(program, 4)
    simulated = simulate(task, None, lambda _: None)
    for (model, means), peer in zip(ended, simulated.peers, strict=True):
        assert peer.model is not None
        for name, tensor in peer.model.items():
            assert torch.equal(model[name], tensor), f"{name} of {peer.id} differs"
        assert peer.swarm_metrics is not None
        assert means == peer.swarm_metrics["metrics"]


@pytest.fixture
def run(daemons: Callable[..., Any]) -> Callable[..., Any]:
    """Starts the coordinator of a run for loops of one's own: `run("steps=6", peers=2)`."""
    return lambda *settings, **top: daemons(*OWN, *settings, start=False, **top)


def test_gradients_may_be_accumulated(run: Callable[..., Any]) -> None:
    """A step is an optimizer step, however many backward passes are in it."""
    swarm = run("steps=5", peers=2)

    def program(k: int) -> tuple[nn.Module, int]:
        model, backward = line(), 0
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with Swarm(model, optimizer, swarm.address) as member:
            while not member.finished:
                for _ in range(3):
                    (loss_of(model, k) / 3).backward()
                    backward += 1
                member.step()
                optimizer.zero_grad()
        return model, backward

    (first, passes), (second, _) = together(program, 2)
    assert passes == 15
    assert alike([first.state_dict(), second.state_dict()], 0.1)
    with torch.no_grad():
        assert loss_of(first, 0) < loss_of(line(), 0)


def test_a_step_that_the_scaler_skips_moves_the_model_by_nothing(run: Callable[..., Any]) -> None:
    swarm = run("steps=4", "algorithm.name=allreduce", peers=2)
    moves: dict[int, list[float]] = {0: [], 1: []}

    def program(k: int) -> nn.Module:
        model = line()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        with Swarm(model, optimizer, swarm.address, scaler=scaler) as member:
            for step in range(4):
                before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    x, y = batch(0)
                    loss = (model(x).float() - y).square().mean()
                scaler.scale(loss).backward()
                if step == 1:
                    model.weight.grad[0, 0] = torch.inf
                member.step(loss=loss)
                optimizer.zero_grad()
                after = torch.cat([p.detach().flatten() for p in model.parameters()])
                moves[k].append(float((after - before).norm()))
            assert member.finished
            assert scaler.get_scale() == 4.0
        return model

    first, second = together(program, 2)
    assert alike([first.state_dict(), second.state_dict()], 0.0)
    for moved in moves.values():
        assert moved[1] == 0.0
        assert min(moved[0], moved[2], moved[3]) > 0.01


def test_clipping_and_a_scheduler_work_as_always(run: Callable[..., Any]) -> None:
    """With equal data all peers do what one alone would do."""
    swarm = run("steps=6", "algorithm.name=allreduce", peers=2)

    def train(step: Callable[[torch.optim.Optimizer], Any], model: nn.Module) -> nn.Module:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.4, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.1)
        take = step(optimizer)
        for _ in range(6):
            loss_of(model, 0).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            take()
            scheduler.step()
            optimizer.zero_grad()
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.4 * 1e-3)
        return model

    def program(_: int) -> nn.Module:
        model, members = line(), []

        def join(optimizer: torch.optim.Optimizer) -> Callable[[], Any]:
            members.append(Swarm(model, optimizer, swarm.address))
            return members[0].step

        train(join, model)
        members[0].close()
        return model

    alone = train(lambda optimizer: optimizer.step, line()).state_dict()
    for model in together(program, 2):
        assert alike([alone, model.state_dict()], 1e-6)


def test_closures_and_loops_that_take_the_step_themselves(run: Callable[..., Any]) -> None:
    swarm = run("steps=3", "algorithm.local_steps=2", peers=2)

    def program(k: int) -> int:
        model, steps = line(), 0
        if k:
            optimizer: torch.optim.Optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2)
        else:
            optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(model, k)
            loss.backward()
            return loss

        with Swarm(model, optimizer, swarm.address) as member:
            while not member.finished:
                if k:
                    loss = member.step(closure)
                    assert loss.shape == ()
                else:
                    loss = closure()
                    optimizer.step()
                    member.exchange(loss=loss)
                steps += 1
            assert member.step_number == 3
        return steps

    assert together(program, 2) == [6, 6]


def test_pairs_that_never_wait_for_each_other(run: Callable[..., Any]) -> None:
    swarm = run("steps=30", "algorithm.name=swarmsgd", "algorithm.local_steps=2", peers=2)
    pace = Barrier(2)  # or one may be done before the other begins, which then trains alone

    def program(k: int) -> Mapping[str, Tensor]:
        model = line()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        with Swarm(model, optimizer, swarm.address) as member:
            while not member.finished:
                pace.wait(60)
                optimizer.zero_grad()
                loss_of(model, k).backward()
                member.step()
        return {name: tensor.clone() for name, tensor in model.state_dict().items()}

    assert alike(together(program, 2), 0.1)


class Slip(Exception):
    """A mistake in a program."""


def test_who_fails_leaves_and_the_others_go_on(run: Callable[..., Any], tmp_path: Path) -> None:
    swarm = run("steps=40", "coordinator.lease_s=60", peers=3)

    def program(k: int) -> int:
        model = line()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        with Swarm(
            model, optimizer, swarm.address, peer_id=f"peer-{k}", state_dir=tmp_path / str(k)
        ) as member:
            while not member.finished:
                optimizer.zero_grad()
                loss_of(model, k).backward()
                member.step()
                if k == 1 and member.step_number == 5:
                    raise Slip
        return member.step_number

    with ThreadPoolExecutor(3) as pool:
        ends = [pool.submit(program, k) for k in range(3)]
        with pytest.raises(Slip):
            ends[1].result()
        lost = swarm.coordinator.until("member_lost")
        assert (lost["peer"], lost["reason"]) == ("peer-1", "left")
        assert [ends[0].result(), ends[2].result()] == [40, 40]
    assert [path.name for path in (tmp_path / "1").iterdir()] == ["checkpoint-00000001.safetensors"]
    assert (tmp_path / "0" / "model.safetensors").exists()


def test_a_program_resumes_with_model_and_optimizer(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    """Alone, the two halves make the model of an uninterrupted run."""

    def train(swarm: Any, until: int, **options: Any) -> tuple[Mapping[str, Tensor], list[int]]:
        model, seen = line(), []
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        with Swarm(model, optimizer, swarm.address, peer_id="peer-0", **options) as member:
            while not member.finished and member.step_number < until:
                optimizer.zero_grad()
                loss_of(model, 0).backward()
                seen.append(member.step_number)
                if member.step_number % 2 == 1:
                    optimizer.param_groups[0]["lr"] *= 0.5
                member.step()
        return {name: tensor.clone() for name, tensor in model.state_dict().items()}, seen

    whole, _ = train(run("steps=8", peers=1), 8)
    swarm = run("steps=8", peers=1)
    _, first = train(swarm, 3, state_dir=tmp_path)
    halves, second = train(swarm, 8, state_dir=tmp_path, resume=True)
    assert first + second == list(range(8))
    assert alike([whole, halves], 0.0)


def test_a_program_resumes_with_the_scale_of_its_gradients(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    """Scales of both halves, and the model, are those of an uninterrupted run: also the steps since
    the last change of the scale are counted on."""

    def train(swarm: Any, until: int, **options: Any) -> tuple[Mapping[str, Tensor], list[float]]:
        model, scales = line(), []
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=3)
        with join(
            swarm.address, model, optimizer=optimizer, scaler=scaler, peer_id="peer-0", **options
        ) as member:
            while not member.finished and member.step_number < until:
                optimizer.zero_grad()
                scales.append(scaler.get_scale())
                scaler.scale(loss_of(model, 0)).backward()
                if member.step_number == 1:
                    model.weight.grad[0, 0] = torch.nan
                member.step()
        return {name: tensor.clone() for name, tensor in model.state_dict().items()}, scales

    whole, scales = train(run("steps=9", peers=1), 9)
    assert scales == [64, 64, 32, 32, 32, 64, 64, 64, 128]
    swarm = run("steps=9", peers=1)
    _, first = train(swarm, 4, state_dir=tmp_path)
    halves, second = train(swarm, 9, state_dir=tmp_path, resume=True)
    assert first + second == scales
    assert alike([whole, halves], 0.0)


def test_a_program_says_what_its_model_weighs(run: Callable[..., Any]) -> None:
    settings = ("steps=1", "algorithm.name=allreduce", "data.weighting=declared")
    swarm = run(*settings, peers=2)

    def program(k: int) -> Tensor:
        model = line()
        with join(swarm.address, model, peer_id=f"peer-{k}", weight=1 + 2 * k) as member:
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, float(k))
            member.step()
        return model.weight.detach()

    mean = torch.full((1, 3), 0.5 - 0.1 * 3 / 4)
    for weight in together(program, 2):
        assert torch.allclose(weight, mean, rtol=0, atol=1e-6)


# --- what goes wrong ----------------------------------------------------------------------------


def join(address: str, model: nn.Module | None = None, **options: Any) -> Swarm:
    model = line() if model is None else model
    optimizer = options.pop("optimizer", None) or torch.optim.SGD(model.parameters(), lr=0.1)
    return Swarm(model, optimizer, address, **options)


def test_no_coordinator() -> None:
    with pytest.raises(JoinError, match=r"'127.0.0.1:1': no coordinator answered within 0.1 s"):
        join("127.0.0.1:1", patience=0.1)


def test_models_of_different_shapes_do_not_meet(run: Callable[..., Any]) -> None:
    swarm = run("steps=1", peers=2)

    def program(k: int) -> None:
        with join(swarm.address, peer_id=f"peer-{k}") as member:
            member.step()

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(program, 0)
        swarm.coordinator.until("waiting", lambda event: event["present"] == 1)
        with pytest.raises(JoinError, match="models differ in names, shapes or types of"):
            join(swarm.address, nn.Linear(4, 1), peer_id="peer-1")
        program(1)
        first.result()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("task.name=digits", r"task.name = 'digits': .* --set task.name=own-loop"),
        ("optimizer.lr=0.1", r"optimizer.lr = 0.1: would be of no effect"),
        ("algorithm.name=dpsgd-qgm", r"algorithm.name = 'dpsgd-qgm': .* choose another"),
    ],
)
def test_a_run_that_is_not_for_programs(
    run: Callable[..., Any], setting: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        join(run(setting, peers=1).address)


def test_a_model_is_in_one_swarm_at_a_time(run: Callable[..., Any]) -> None:
    swarm, model = run("steps=2", peers=1), line()
    with join(swarm.address, model) as member:
        with pytest.raises(ConfigError, match="model = 'Linear': is in a swarm already"):
            join(swarm.address, model)
        member.step()
        member.step()
        assert member.finished
        with pytest.raises(ConfigError, match=r"swarm.step = 2: all steps of the run are done"):
            member.step()
    with pytest.raises(ConfigError, match=r"swarm.step = 2: this program has left"):
        member.exchange()
    with join(run("steps=2", peers=1).address, model):
        pass


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: {"model": model.bfloat16()}, r"model = 'weight': is torch.bfloat16"),
        (lambda model: {"model": model.requires_grad_(False)}, "has no trainable parameter"),
        (lambda _: {"model": "linear"}, "model = 'str': not a torch.nn.Module"),
        (
            lambda _: {"optimizer": torch.optim.SGD(line().parameters())},
            "optimizer = 'SGD': has no parameter of this model",
        ),
        (
            lambda model: {"optimizer": torch.optim.SGD(model.parameters(), foreach=True)},
            r"optimizer.param_groups\[0\]\['foreach'\] = True: .* this run is deterministic",
        ),
        (lambda _: {"tls_cert": "nowhere.pem"}, "--tls-key = None"),
        (lambda _: {"scaler": 8.0}, "scaler = 'float': not a torch.amp.GradScaler"),
        (lambda _: {"weight": -1.0}, r"weight = -1.0: not a weight"),
        (lambda _: {"weight": 2.0}, "--weight = 2.0: .* its peers do not declare weights"),
    ],
)
def test_what_cannot_be_joined_with(
    run: Callable[..., Any], change: Callable[[nn.Module], dict[str, Any]], message: str
) -> None:
    model = line()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    given = {"model": model, "optimizer": optimizer, **change(model)}
    address = run("deterministic=true", "steps=2", peers=1).address
    with pytest.raises(ConfigError, match=message):
        Swarm(coordinator=address, **given)


def test_programs_do_not_only_forward(run: Callable[..., Any]) -> None:
    address = run("steps=2", 'data.forward=["peer-0"]', peers=2).address
    with pytest.raises(ConfigError, match=r"data.forward = \['peer-0'\]: a program trains"):
        join(address)


def test_a_model_that_is_moved_meanwhile(run: Callable[..., Any]) -> None:
    model = line()
    with join(run("steps=2", peers=1).address, model) as member:
        model.double()
        with pytest.raises(ConfigError, match=r"model = 'weight': was moved or replaced"):
            member.exchange()


@pytest.mark.parametrize("every", [0, 1])
def test_an_evaluation_that_gives_nonsense(run: Callable[..., Any], every: int) -> None:
    """On the way it is the program's own error; that of the final model comes from the peer."""
    swarm = run("steps=2", f"evaluation.every={every}", peers=1)
    with join(swarm.address, evaluate=lambda _: {"loss": 0.5}) as member:
        if not every:
            member.exchange()
        with pytest.raises(ConfigError, match=r"evaluate.loss = 'float': not a relayswarm.Meas"):
            member.exchange()


def test_daemons_do_not_join_programs(run: Callable[..., Any], relayswarm: Any) -> None:
    swarm = run("steps=2", peers=1)
    peer = swarm.add("peer-0")
    assert peer.exit_code() == 2
    assert "task.name = 'own-loop': its peers are programs" in peer.log
    assert relayswarm("up", "--task", "own-loop") == 2


def test_measurements_reach_the_mean_of_the_swarm(run: Callable[..., Any]) -> None:
    swarm = run("steps=4", "evaluation.every=2", peers=2)

    def program(k: int) -> tuple[list[bool], dict[str, float]]:
        modes: list[bool] = []

        def evaluate(model: nn.Module) -> dict[str, Measured]:
            modes.append(model.training or torch.is_grad_enabled())
            return {"accuracy": Measured(float(k), weight=1 + 2 * k)}

        with join(swarm.address, evaluate=evaluate) as member:
            while not member.finished:
                member.step()
        return modes, member.means()

    assert together(program, 2) == [([False, False], {"accuracy": 0.75})] * 2
