"""Addresses that are of the internet, and those that are not."""

from __future__ import annotations

import socket

import pytest

from server.http_client import reach
from server.http_client.reach import Reach, is_public


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),
        *("::1", "::", "fd00:ec2::254", "fe80::1%eth0", "::ffff:127.0.0.1", "64:ff9b::10.0.0.1"),
    ],
)
def test_addresses_of_machines_and_local_networks_are_private(address: str) -> None:
    assert not is_public(address)


def test_a_name_that_was_public_stays_so_when_it_resolves_to_a_private_address() -> None:
    found = Reach("models.example")
    assert found.admits("models.example", "8.8.8.8")
    assert not found.admits("models.example", "127.0.0.1")
    assert not found.admits("other.example", "10.0.0.1")
    assert found.admits("other.example", "8.8.4.4")


def test_a_private_server_leads_anywhere() -> None:
    found = Reach("models.local")
    assert found.admits("models.local", "10.0.0.1")
    assert found.admits("other.local", "127.0.0.1")
    assert found.admits("cdn.example", "8.8.8.8")


@pytest.mark.parametrize(("addresses", "is_admitted"), [(["8.8.8.8"], False), (["10.0.0.1"], True), ([], False)])
def test_the_name_of_the_server_is_looked_up_if_another_is_connected_first(
    monkeypatch: pytest.MonkeyPatch, addresses: list[str], is_admitted: bool
) -> None:
    def look_up(host: str, *_: object, **__: object) -> list[tuple]:
        assert host == "models.example"
        if not addresses:
            raise socket.gaierror
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, 0)) for each in addresses]

    monkeypatch.setattr(reach.socket, "getaddrinfo", look_up)
    assert Reach("models.example").admits("localhost", "127.0.0.1") == is_admitted
