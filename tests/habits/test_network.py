"""No test reaches the network: not in this process, not in a child, while loopback stays open to stand-ins."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading

import pytest

# A documentation address (RFC 5737): even unblocked, nobody would answer.
OUTSIDE = "192.0.2.1"
BLOCKED = "tests reach no network"


def answer_once(server: socket.socket) -> None:
    connection, _ = server.accept()
    with connection:
        connection.sendall(b"hello")


@pytest.mark.parametrize("method", ["connect", "connect_ex"])
def test_a_connection_out_is_refused(method: str) -> None:
    with socket.socket() as client, pytest.raises(ConnectionError, match=BLOCKED):
        getattr(client, method)((OUTSIDE, 80))


def test_a_datagram_out_is_refused() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as client, pytest.raises(ConnectionError, match=BLOCKED):
        client.sendto(b"x", (OUTSIDE, 53))


@pytest.mark.parametrize("host", ["example.org", b"example.org", "2001:db8::1"])
def test_a_name_or_address_outside_is_not_looked_up(host: str | bytes) -> None:
    with pytest.raises(ConnectionError, match=BLOCKED):
        socket.getaddrinfo(host, 443)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_loopback_stays_open(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=answer_once, args=(server,))
        thread.start()
        with socket.create_connection((host, server.getsockname()[1]), timeout=10) as client:
            assert client.recv(5) == b"hello"
        thread.join()


def run_child(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_a_child_cannot_connect_either() -> None:
    child = run_child(f"import socket; socket.create_connection(({OUTSIDE!r}, 80), timeout=5)")
    assert child.returncode == 1
    assert BLOCKED in child.stderr


def test_a_child_of_a_child_cannot_connect_either() -> None:
    inner = f"import socket; socket.create_connection(({OUTSIDE!r}, 80), timeout=5)"
    child = run_child(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}], check=True)")
    assert child.returncode == 1
    assert BLOCKED in child.stderr


def test_the_hub_client_knows_that_it_is_offline() -> None:
    child = run_child("import huggingface_hub.constants as c; print(c.HF_HUB_OFFLINE)")
    assert child.stdout.strip() == "True", child.stderr
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
