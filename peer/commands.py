"""The commands `up`, `peer` and `pull`: their options, and what those mean.

Imports that take time are inside the functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from relayswarm import logs
from relayswarm.config import RunConfig
from relayswarm.logs import LogFormat, LogFormatOption
from relayswarm.net.clients import Clients
from relayswarm.net.flags import (
    HttpProxy,
    Insecure,
    TlsCa,
    TlsCert,
    TlsClients,
    TlsKey,
    TlsName,
    Token,
)
from relayswarm.net.reachability import Reachability
from relayswarm.settings import load_over, overrides_in_force

ConfigFile: TypeAlias = Annotated[
    Path | None, typer.Argument(metavar="RUN.TOML", help="Run config; left out: defaults.")
]
Peers: TypeAlias = Annotated[int | None, typer.Option(help="Number of peers.")]
TaskName: TypeAlias = Annotated[str | None, typer.Option("--task", help="What is learnt.")]
Algorithm: TypeAlias = Annotated[str | None, typer.Option(help="How peers average.")]
Graph: TypeAlias = Annotated[str | None, typer.Option(help="Communication graph.")]
Steps: TypeAlias = Annotated[int | None, typer.Option(help="Steps of each peer.")]
Alpha: TypeAlias = Annotated[
    float | None,
    typer.Option(help="Dirichlet parameter of the data's split: the smaller, the more one-sided."),
]
Seed: TypeAlias = Annotated[int | None, typer.Option(help="Of everything random.")]
Overrides: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="SECTION.KEY=VALUE", help="Any setting of the config. May be repeated."
    ),
]
Report: TypeAlias = Annotated[
    Path | None, typer.Option(help="Folder of the report.", show_default="reports/RUN_ID")
]
AsJson: TypeAlias = Annotated[
    bool, typer.Option("--json", help="Write events to standard output, one JSON object each.")
]
PrintJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DataDir: TypeAlias = Annotated[Path | None, typer.Option(help="Folder with the task's data.")]
Device: TypeAlias = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
WithBaseline: TypeAlias = Annotated[
    bool, typer.Option(help="Also train in one place, to compare with.")
]


class PeerRole(StrEnum):
    """What a peer does in its swarm."""

    TRAIN = "train"
    FORWARD = "forward"


def resolve(
    path: Path | None, overrides: list[str] | None, flags: Mapping[str, object]
) -> RunConfig:
    """The run config: defaults, then the file, the environment, `--set`, flags. Raises
    ConfigError."""
    return load_over(path, overrides_in_force(overrides, flags))


def warn(configs: Iterable[RunConfig]) -> None:
    """Say on standard error what the user may not have meant, each thing once."""
    for text in dict.fromkeys(text for config in configs for text in config.warnings):
        typer.echo(f"warning: {text}", err=True)


def up(
    config: ConfigFile = None,
    peers: Peers = None,
    task: TaskName = None,
    algorithm: Algorithm = None,
    graph: Graph = None,
    steps: Steps = None,
    alpha: Alpha = None,
    seed: Seed = None,
    set_: Overrides = None,
    report: Report = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    device: Device = "auto",
    baseline: WithBaseline = True,
) -> None:
    """Run coordinator and peers as processes of this machine, and report on them."""
    given = {"peers": peers, "task": task, "algorithm": algorithm, "graph": graph}
    numbers = {"steps": steps, "alpha": alpha, "seed": seed}
    resolved = resolve(config, set_, {**given, **numbers})
    warn([resolved])
    from peer.localswarm import session

    place = report or Path("reports") / resolved.run_id
    options = session.SessionOptions(place, device, data_dir, as_json, baseline)
    raise typer.Exit(session.up(resolved, options))


def peer(
    coordinator: Annotated[
        str,
        typer.Option(
            help="HOST:PORT of the run's coordinator; with commas between, of several of which one "
            "leads."
        ),
    ] = "127.0.0.1:50050",
    peer_id: Annotated[
        str, typer.Option("--id", help="Id of this peer.", show_default="the coordinator chooses")
    ] = "",
    listen: Annotated[
        str, typer.Option(help="HOST:PORT to listen at; port 0 takes any free one.")
    ] = "127.0.0.1:0",
    advertise: Annotated[
        str,
        typer.Option(help="HOST:PORT at which others reach it.", show_default="where it listens"),
    ] = "",
    reachability: Annotated[
        Reachability,
        typer.Option(
            help="Whether others can connect to this peer. One that can only dial out collects "
            "from its neighbours what is for it."
        ),
    ] = Reachability.BOTH,
    metrics_listen: Annotated[
        str, typer.Option(help="HOST:PORT for Prometheus; port 0 takes any free one.")
    ] = "127.0.0.1:0",
    device: Device = "auto",
    data_dir: DataDir = None,
    state_dir: Annotated[
        Path | None, typer.Option(help="Folder for checkpoints and the final model.")
    ] = None,
    patience: Annotated[
        float, typer.Option(min=0, help="Seconds to wait for the coordinator to answer.")
    ] = 60.0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint in --state-dir.")
    ] = False,
    stay: Annotated[
        bool,
        typer.Option("--stay", help="After the last step serve the model until told to end."),
    ] = False,
    reflection: Annotated[
        bool, typer.Option("--reflection", help="Serve gRPC reflection, for grpcurl and the like.")
    ] = False,
    as_json: AsJson = False,
    allow_task: Annotated[
        list[str] | None,
        typer.Option(help="A task of a package that the coordinator may choose. Repeatable."),
    ] = None,
    allow_algorithm: Annotated[
        list[str] | None,
        typer.Option(help="Likewise an algorithm of a package. Repeatable."),
    ] = None,
    task_file: Annotated[
        Path | None,
        typer.Option(help="Python file with the task, for a run whose `task.file` names one."),
    ] = None,
    role: Annotated[
        PeerRole,
        typer.Option(help="train; or forward: without data, relay for the others and be served."),
    ] = PeerRole.TRAIN,
    weight: Annotated[
        float | None,
        typer.Option(help="What its model weighs, in a run with `data.weighting = declared`."),
    ] = None,
    site: Annotated[
        Path | None,
        typer.Option(help="The site's own law, which runs must keep to (site.toml)."),
    ] = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_clients: TlsClients = Clients.REQUIRED,
    token_file: Token = None,
    insecure: Insecure = False,
    http_proxy: HttpProxy = "",
    log_format: LogFormatOption = LogFormat.AUTO,
) -> None:
    """Join the run of a coordinator and train in it until it is done."""
    from peer.parts import PeerOptions
    from peer.service import run
    from peer.weighting import require_declared
    from relayswarm.net.address import split_address
    from relayswarm.net.security import Security

    logs.configure(log_format, tells_events=as_json)
    if http_proxy:
        split_address(http_proxy, "--http-proxy")
    files = (tls_ca, tls_cert, tls_key, tls_clients, token_file)
    options = PeerOptions(
        coordinator=coordinator,
        peer_id=peer_id,
        listen=listen,
        advertise=advertise,
        reachability=reachability,
        metrics_listen=metrics_listen,
        device=device,
        data_dir=data_dir,
        state_dir=state_dir,
        patience_s=patience,
        resume=resume,
        stay=stay,
        reflection=reflection,
        json_events=as_json,
        allow_tasks=tuple(allow_task or ()),
        allow_algorithms=tuple(allow_algorithm or ()),
        task_file=task_file,
        weight=require_declared(weight, forwards=role is PeerRole.FORWARD),
        forwards=role is PeerRole.FORWARD,
        site=site,
        security=Security(*files, insecure, proxy=http_proxy),
    )
    raise typer.Exit(run(options))


def pull(
    peer: Annotated[str, typer.Option(help="HOST:PORT of the peer.")],
    output: Annotated[Path, typer.Option(help="File to write (safetensors).")],
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_name: TlsName = None,
) -> None:
    """Fetch the present model of a running peer into a file, without disturbing its training."""
    from peer.transport.read_model import read_model
    from peer.transport.remote_model import save_model
    from relayswarm.net.security import Security

    model = read_model(peer, Security(tls_ca, tls_cert, tls_key, name=tls_name))
    save_model(model, output)
    typer.echo(f"{output}: model of {model.peer_id}, run {model.run_id}, after step {model.step}")
