"""What only this machine reaches, and what is no address at all."""

import pytest

from relayswarm.errors import ConfigError
from relayswarm.net.address import is_loopback, split_address


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("[::1]", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("[::]", False),
        ("10.0.0.1", False),
        ("[::ffff:10.0.0.1]", False),
        ("localhost.example", False),
        ("127.0.0.1.example", False),
        ("", False),
    ],
)
def test_loopback_is_told_from_the_rest(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("[::1]:65535", ("[::1]", 65535)),
        ("peer-a.example:50051", ("peer-a.example", 50051)),
    ],
)
def test_an_address_has_a_host_and_a_port(address: str, parts: tuple[str, int]) -> None:
    assert split_address(address, "--listen") == parts


@pytest.mark.parametrize("address", ["", ":1", "a", "a:", "a:70000", "::1:5", "a b:1", "u://a:1"])
def test_anything_else_is_an_error_that_names_the_flag(address: str) -> None:
    with pytest.raises(ConfigError, match=r"--listen = .*HOST:PORT"):
        split_address(address, "--listen")
