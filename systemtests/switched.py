"""Networks of their own for processes, joined by a switch: namespaces and a bridge. Needs root."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager


def run(*words: str) -> None:
    """Run a command that must succeed."""
    subprocess.run(words, check=True)


def inside(namespace: str, *command: str) -> tuple[str, ...]:
    """The command as it runs in that network."""
    return ("ip", "netns", "exec", namespace, *command)


@contextmanager
def switched(switch: str, switch_ip: str, addresses: Mapping[str, str]) -> Iterator[None]:
    """A namespace for each key, `eth0` in it with the address given, and one with the bridge that
    joins them; they are gone afterwards. All addresses are of one /24."""
    with ExitStack() as stack:
        for namespace in (switch, *addresses):
            run("ip", "netns", "add", namespace)
            stack.callback(run, "ip", "netns", "delete", namespace)
            run("ip", "-n", namespace, "link", "set", "lo", "up")
        run("ip", "-n", switch, "link", "add", "bridge", "type", "bridge")
        run("ip", "-n", switch, "address", "add", f"{switch_ip}/24", "dev", "bridge")
        run("ip", "-n", switch, "link", "set", "bridge", "up")
        for k, (namespace, address) in enumerate(addresses.items()):
            end = ("type", "veth", "peer", "eth0", "netns", namespace)
            run("ip", "-n", switch, "link", "add", f"to-{k}", *end)
            run("ip", "-n", switch, "link", "set", f"to-{k}", "master", "bridge", "up")
            run("ip", "-n", namespace, "address", "add", f"{address}/24", "dev", "eth0")
            run("ip", "-n", namespace, "link", "set", "eth0", "up")
        yield
