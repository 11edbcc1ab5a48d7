"""Write the Grafana dashboard of deploy/grafana: `generate_dashboards.py [--check]`.

Panels are written down here and built with Grafana's own typed library; the JSON is committed, so
that whoever deploys needs neither. `--check` writes nothing, and fails if the committed one is old.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    LegendDisplayMode,
    LegendPlacement,
    ScaleDistribution,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    DynamicConfigValue,
    VariableHide,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

TARGET = Path(__file__).parents[1] / "deploy/grafana/dashboards/swarm.json"
PROMETHEUS = DataSourceRef(type_val="prometheus", uid="prometheus")

# What the variables chose, in the words of queries. Of a peer's own metrics only `info` knows run
# and peer; those that the coordinator passes on (`relayswarm_member_*`) have both.
PEERS = 'run=~"$run", peer=~"$peer"'
INFO = f"on (instance) group_left (run, peer) relayswarm_peer_info{{{PEERS}}}"
COORDINATOR = 'instance=~"$coordinator"'
METRIC = 'metric="$metric"'
RATE = "[$__rate_interval]"


def peer(name: str, *matchers: str, rated: bool = False) -> str:
    """A peer's metric, of the peers that are chosen: as read at the peer itself, or where that
    cannot be reached as the coordinator tells it. `rated`: how much of it comes in a second."""
    full = name if name.startswith("process_") else f"relayswarm_peer_{name}"
    full = f"relayswarm_{name}" if name.startswith("exchanges") else full
    own = f"{full}{{{', '.join(matchers)}}}" if matchers else full
    told = f"relayswarm_member_{name}{{{', '.join((PEERS, *matchers))}}}"
    if rated:
        own, told = rate(own), rate(told)
    return f"({own} * {INFO} or on (run, peer) {told})"


def coordinator(name: str, *matchers: str) -> str:
    """The coordinator's metric, of the runs that are chosen."""
    return f"relayswarm_coordinator_{name}{{{', '.join((COORDINATOR, *matchers))}}}"


def rate(series: str) -> str:
    """How much of it comes in a second."""
    return f"rate({series}{RATE})"


@dataclass(frozen=True)
class Panel:
    """One picture: queries by legend. `band`: legends whose curves enclose an area."""

    title: str
    text: str
    queries: dict[str, str]
    unit: str = "short"
    kind: str = "lines"
    width: int = 12
    band: tuple[str, str] | None = None
    repeat: str | None = None
    log: bool = False


@dataclass(frozen=True)
class Row:
    """Panels under a headline."""

    title: str
    panels: Sequence[Panel] = field(default_factory=tuple)


def band(title: str, text: str, series: str, **more: Any) -> Panel:
    """The range over peers, and their mean."""
    queries = {"highest": f"max({series})", "mean": f"avg({series})", "lowest": f"min({series})"}
    return Panel(title, text, queries, band=("highest", "lowest"), **more)


def number(title: str, text: str, query: str, unit: str = "short", legend: str = "") -> Panel:
    """The present value, large."""
    return Panel(title, text, {legend or title: query}, unit, kind="number", width=4)


OVERVIEW = Row(
    "Swarm",
    [
        number(
            "State",
            "State of the run.",
            f"{coordinator('run_state')} == 1",
            legend="{{state}}",
        ),
        number("Members", "Peers with a lease.", f"sum({coordinator('members')})"),
        number(
            "Step", "Of the slowest member.", f"min({coordinator('member_step_min')})", unit="none"
        ),
        number(
            "Steps a second", "Of all peers together.", f"sum({peer('steps_total', rated=True)})"
        ),
        number(
            "Peers watched",
            "That Prometheus scrapes, or the coordinator tells of.",
            f"count({peer('info')})",
        ),
        number(
            "Alerts",
            "That fire now.",
            'count(ALERTS{alertname=~"Relayswarm.*", alertstate="firing"}) or vector(0)',
        ),
        Panel(
            "Steps",
            "Steps done by each peer.",
            {"{{peer}}": peer("step")},
            unit="none",
        ),
        Panel(
            "Comings and goings",
            "Members gained, lost by reason, and done, since the coordinator started.",
            {
                "joined": f"sum({coordinator('joins_total')})",
                "lost: {{reason}}": f"sum by (reason) ({coordinator('members_lost_total')})",
                "done": f"sum({coordinator('members_finished_total')})",
            },
            unit="none",
        ),
    ],
)

CONVERGENCE = Row(
    "Convergence",
    [
        band("Training loss", "Over the peers, each on its own data.", peer("training_loss")),
        Panel(
            "Consensus distance",
            "How far each peer's model is from the mean of those that came in.",
            {"{{peer}}": peer("consensus_distance")},
            log=True,
        ),
        band(
            "Evaluation: $metric",
            "What peers measured last, each of its own model.",
            peer("evaluation", METRIC),
            repeat="metric",
        ),
        Panel(
            "The swarm's mean: $metric",
            "The weighted mean of an evaluation over the swarm, as peers know it.",
            {"{{peer}}": peer("swarm_metric", METRIC)},
            repeat="metric",
        ),
    ],
)

AVERAGING = Row(
    "Averaging",
    [
        Panel(
            "Models counted",
            "In the last average, against the members of the epoch.",
            {
                "swarm size": f"max({peer('swarm_size')})",
                "fewest models": f"min({peer('models_counted')})",
                "most models": f"max({peer('models_counted')})",
            },
            unit="none",
        ),
        Panel(
            "Messages missed",
            "The part of the neighbours' messages that steps went without.",
            {
                "{{peer}}": f"{peer('messages_missed_total', rated=True)}"
                f" / on (run, peer) ({peer('messages_expected_total', rated=True)} > 0)"
            },
            unit="percentunit",
        ),
        Panel(
            "Messages refused",
            "On arrival, by verdict.",
            {"{{reason}}": f"sum by (reason) ({peer('messages_refused_total', rated=True)})"},
            unit="cps",
        ),
        Panel(
            "Messages dropped, sent again, used late",
            "Dropped: received, but of no use. Sent again: by what was answered.",
            {
                "dropped: {{reason}}": "sum by (reason) ("
                + peer("messages_dropped_total", rated=True)
                + ")",
                "again: {{reason}}": "sum by (reason) ("
                + peer("messages_retried_total", rated=True)
                + ")",
                "late": f"sum({peer('messages_used_late_total', rated=True)})",
            },
            unit="cps",
        ),
        Panel(
            "Pairwise exchanges",
            "How exchanges ended, by who averaged; of pairwise methods only.",
            {
                "{{role}}: {{outcome}}": "sum by (role, outcome) ("
                + peer("exchanges_total", rated=True)
                + ")"
            },
            unit="cps",
        ),
        Panel(
            "Elections",
            "Epochs of topology published, by reason, since the coordinator started.",
            {"{{reason}}": f"sum by (reason) ({coordinator('elections_total')})"},
            unit="none",
        ),
    ],
)

TRAFFIC = Row(
    "Traffic",
    [
        Panel(
            "Sent",
            "By wire format.",
            {"{{format}}": f"sum by (format) ({peer('sent_bytes_total', rated=True)})"},
            unit="Bps",
        ),
        Panel(
            "Sent in all",
            "By wire format, since peers started.",
            {"{{format}}": f"sum by (format) ({peer('sent_bytes_total')})"},
            unit="bytes",
        ),
        Panel(
            "Received",
            "By each peer.",
            {"{{peer}}": peer("received_bytes_total", rated=True)},
            unit="Bps",
        ),
        Panel(
            "Turned away",
            "Joins refused, and calls denied, by reason.",
            {
                "join: {{reason}}": "sum by (reason) ("
                + rate(coordinator("joins_refused_total"))
                + ")",
                "call of a peer: {{reason}}": "sum by (reason) ("
                + peer("calls_denied_total", rated=True)
                + ")",
                "call of the coordinator: {{reason}}": "sum by (reason) ("
                + rate(coordinator("calls_denied_total"))
                + ")",
            },
            unit="cps",
        ),
    ],
)

TIME = Row(
    "Time",
    [
        Panel(
            f"Seconds of a step: {phase}",
            text,
            {
                "{{le}}": "sum by (le) ("
                + peer("step_seconds_bucket", f'phase="{phase}"', rated=True)
                + ")"
            },
            unit="s",
            kind="heat map",
        )
        for phase, text in (
            ("compute", "Local steps: how many of all peers took how long."),
            ("wait", "From the end of local steps to the end of the exchange."),
        )
    ],
)

RESOURCES = Row(
    "Resources",
    [
        Panel(
            "Processor",
            "Cores used by each process.",
            {
                "{{peer}}": peer("process_cpu_seconds_total", rated=True),
                "coordinator": rate(f"process_cpu_seconds_total{{{COORDINATOR}}}"),
            },
        ),
        Panel(
            "Memory",
            "Resident, of each process.",
            {
                "{{peer}}": peer("process_resident_memory_bytes"),
                "coordinator": f"process_resident_memory_bytes{{{COORDINATOR}}}",
            },
            unit="bytes",
        ),
        Panel(
            "Checkpoints",
            "Mean time to write one, and how many were not written.",
            {
                "seconds": f"sum({peer('checkpoint_seconds_sum')})"
                f" / sum({peer('checkpoint_seconds_count')})",
                "failures": f"sum({peer('checkpoint_failures_total')})",
            },
        ),
        Panel(
            "GPU memory",
            "Of peers that train on a GPU.",
            {"{{peer}}: {{kind}}": peer("gpu_memory_bytes")},
            unit="bytes",
        ),
    ],
)

ROWS = (OVERVIEW, CONVERGENCE, AVERAGING, TRAFFIC, TIME, RESOURCES)

BOTH = "relayswarm_(peer|member)"
VARIABLES = (
    ("run", "Run", "label_values(relayswarm_coordinator_info, run)"),
    ("coordinator", "", 'label_values(relayswarm_coordinator_info{run=~"$run"}, instance)'),
    (
        "peer",
        "Peer",
        f'label_values({{__name__=~"{BOTH}_info", run=~"$run"}}, peer)',
    ),
    ("metric", "Metric", f'label_values({{__name__=~"{BOTH}_evaluation"}}, metric)'),
)
"""Name, label (none: hidden, follows from others) and query."""

EPOCHS = f"changes({coordinator('epoch_number')}[1m]) > 0"  # annotations are asked once a minute


def build() -> str:
    """The dashboard as JSON."""
    board = (
        dashboard.Dashboard("relayswarm")
        .uid("relayswarm")
        .description("A swarm of relayswarm: progress, averaging, traffic, resources.")
        .tags(["relayswarm"])
        .editable()
        .refresh("10s")
        .time("now-30m", "now")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .annotation(
            dashboard.AnnotationQuery()
            .name("Epochs of topology")
            .datasource(PROMETHEUS)
            .enable(True)
            .icon_color("purple")
            .expr(EPOCHS)
        )
    )
    for name, label, query in VARIABLES:
        board = board.with_variable(_variable(name, label, query))
    for row in ROWS:
        board = board.with_row(dashboard.Row(row.title))
        for panel in row.panels:
            board = board.with_panel(_panel(panel))
    return str(JSONEncoder(sort_keys=True, indent=2).encode(board.build())) + "\n"


def _variable(name: str, label: str, query: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .hide(VariableHide.DONT_HIDE if label else VariableHide.HIDE_VARIABLE)
        .datasource(PROMETHEUS)
        .query(query)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.NATURAL_ASC)
        .multi(True)
        .include_all(True)
    )


def _panel(panel: Panel) -> Any:
    built: Any
    match panel.kind:
        case "number":
            built = stat.Panel()
        case "heat map":
            built = _heat_map()
        case _:
            built = _lines(panel)
    built = built.title(panel.title).description(panel.text).datasource(PROMETHEUS)
    built = built.span(panel.width).height(4 if panel.kind == "number" else 8).unit(panel.unit)
    if panel.repeat:
        built = built.repeat(panel.repeat).repeat_direction("h").max_per_row(2)
    for index, (legend, expression) in enumerate(panel.queries.items()):
        built = built.with_target(_query(chr(ord("A") + index), legend, expression, panel.kind))
    return built


def _query(ref: str, legend: str, expression: str, kind: str) -> prometheus.Dataquery:
    query = prometheus.Dataquery().ref_id(ref).expr(expression).legend_format(legend)
    if kind == "heat map":
        query = query.format(PromQueryFormat.HEATMAP)
    return query.instant() if kind == "number" else query.range()


def _lines(panel: Panel) -> timeseries.Panel:
    legend = common.VizLegendOptions()
    legend = legend.display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM)
    built = timeseries.Panel().line_width(1).legend(legend.show_legend(True))
    if panel.log:
        built = built.scale_distribution(
            common.ScaleDistributionConfig().type(ScaleDistribution.LOG).log(10)
        )
    if panel.band:
        upper, lower = panel.band
        below = DynamicConfigValue("custom.fillBelowTo", lower)
        built = built.override_by_name(upper, [below, DynamicConfigValue("custom.fillOpacity", 20)])
    return built


def _heat_map() -> heatmap.Panel:
    colours = heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges")
    return heatmap.Panel().color(colours)


def main(arguments: Sequence[str]) -> None:
    """Write, or check."""
    text = build()
    if "--check" not in arguments:
        TARGET.write_text(text, encoding="utf-8")
    elif TARGET.read_text(encoding="utf-8") != text:
        sys.exit(f"{TARGET} is stale: run `make docs`")


if __name__ == "__main__":
    main(sys.argv[1:])
