"""Join a swarm from a training loop of your own.

    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with relayswarm.Swarm(model, optimizer, "coordinator.example:50050") as swarm:
        while not swarm.finished:
            optimizer.zero_grad()
            loss = next_loss(model)
            loss.backward()
            swarm.step(loss=loss)  # in the place of optimizer.step()

The coordinator's run config has `task.name = "own-loop"`. Importing this loads neither torch nor
`peer`; joining does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from relayswarm.net.clients import Clients

if TYPE_CHECKING:
    import torch

    from relayswarm.config import RunConfig
    from relayswarm.task import Measured, Site


class Swarm:
    """A program's place in a swarm: the program trains, and the model is averaged with others.

    Making one joins the swarm and waits until all peers that the run needs are there. From then on
    the model's parameters and float buffers are views into one vector; their values change in
    `step` and `exchange` only. All programs of a run must begin with equal models: seed them alike,
    or load the same file. Call all of it from one thread.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        coordinator: str = "127.0.0.1:50050",
        *,
        scaler: torch.amp.GradScaler | None = None,
        evaluate: Callable[[torch.nn.Module], Mapping[str, Measured]] | None = None,
        weight: float | None = None,
        peer_id: str = "",
        listen: str = "127.0.0.1:0",
        advertise: str = "",
        metrics_listen: str = "127.0.0.1:0",
        data_dir: str | Path | None = None,
        state_dir: str | Path | None = None,
        patience: float = 60.0,
        resume: bool = False,
        allow_algorithms: Sequence[str] = (),
        tls_ca: str | Path | None = None,
        tls_cert: str | Path | None = None,
        tls_key: str | Path | None = None,
        tls_clients: str = Clients.REQUIRED.value,
        token_file: str | Path | None = None,
        insecure: bool = False,
    ) -> None:
        """Join the run of a coordinator. What is not said here is as the option of
        `relayswarm peer` of that name.

        `model` is on its device; `optimizer` has its parameters; with a `scaler` of gradients the
        optimizer's steps are taken through it, and its scale is in checkpoints. `evaluate(model)`
        measures it as `Task.evaluate` does: in evaluation mode, without gradients, before each step
        at which the run evaluates, and after the last. `weight` is what the model weighs in
        averages, in a run with `data.weighting = "declared"`. With `state_dir` there are
        checkpoints of model and optimizer, and in the end `model.safetensors`; with `resume` the
        program goes on from the newest one.

        Where `torch.distributed` is initialised, as by torchrun, all its ranks are one peer: each
        makes a Swarm, rank 0 joins and talks, and the others take up its model after each exchange.

        Raises JoinError if no coordinator answers within `patience` seconds or it refuses, and
        ConfigError for a model, optimizer or setting that cannot be used.
        """
        from peer.ownloop.ranks import join
        from peer.parts import PeerOptions
        from peer.weighting import require_weight
        from relayswarm.net.security import Security

        security = Security(
            ca=_path(tls_ca),
            cert=_path(tls_cert),
            key=_path(tls_key),
            clients=Clients(tls_clients),
            token_file=_path(token_file),
            insecure=insecure,
        )
        options = PeerOptions(
            coordinator=coordinator,
            peer_id=peer_id,
            listen=listen,
            advertise=advertise,
            metrics_listen=metrics_listen,
            data_dir=_path(data_dir),
            weight=None if weight is None else require_weight("weight", weight),
            state_dir=_path(state_dir),
            patience_s=patience,
            resume=resume,
            allow_algorithms=tuple(allow_algorithms),
            security=security,
        )
        self._optimizer, self._scaler = optimizer, scaler
        self._loop = join(model, optimizer, options, evaluate, scaler)

    def step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        loss: float | torch.Tensor | None = None,
    ) -> Any:
        """Take an optimizer step, and after every `algorithm.local_steps` of them exchange models.

        Stands where `optimizer.step()` was, takes the same `closure` and returns the same. With the
        swarm's `scaler` it stands where `scaler.step(optimizer)` and `scaler.update()` were; a step
        that the scaler skips counts, and moves the model by nothing. `loss` is shown in status and
        metrics.

        Raises ConfigError if the run is over or the model was moved, and what has ended this peer.
        """
        self._loop.require_turn()
        given = () if closure is None else (closure,)
        if self._scaler is None:
            returned = self._optimizer.step(*given)
        else:
            returned = self._scaler.step(self._optimizer, *given)
            self._scaler.update()
        self._loop.exchange(loss)
        return returned

    def exchange(self, *, loss: float | torch.Tensor | None = None) -> None:
        """What `step` does after the optimizer step, for loops that take that themselves; once
        after each. Raises as `step` does."""
        self._loop.exchange(loss)

    def close(self) -> None:
        """Leave the swarm. Once all steps are done, first serve the neighbours to their end; before
        that, a checkpoint is written if there is a `state_dir`. The model stays as it is."""
        self._loop.close()

    @property
    def finished(self) -> bool:
        """Whether all steps of the run are done; then the model is the final one."""
        return self._loop.finished

    @property
    def step_number(self) -> int:
        """Steps that the model has seen, each of `algorithm.local_steps` optimizer steps. Grows by
        one with most exchanges; a peer that was late may jump ahead."""
        return self._loop.step_number

    @property
    def config(self) -> RunConfig:
        """The run config; `config.task.options` is at the programs' disposal."""
        return self._loop.config

    @property
    def site(self) -> Site:
        """Which shard of the data is this peer's, of how many; `partition` takes it."""
        return self._loop.site

    @property
    def peer_id(self) -> str:
        """Id of this peer."""
        return self._loop.peer_id

    def means(self) -> dict[str, float]:
        """The newest means over the swarm of what `evaluate` measures, by name; empty at first,
        and on ranks other than 0. Those of the final models are whole once the swarm is closed."""
        return dict(self._loop.means())

    def __enter__(self) -> Swarm:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _path(file: str | Path | None) -> Path | None:
    return None if file is None else Path(file)
