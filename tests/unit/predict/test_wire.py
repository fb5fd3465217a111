"""Connections to an ingress: through real proxies, with a private CA, and within the time limit."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
import trustme

from deployer.errors import ConfigError, NotReachedError, PredictError
from deployer.predict import Client, Failure, Prediction
from deployer.targets.protocols import Endpoint
from tests.unit.predict.loopback import Reply, Server
from tests.unit.predict.proxying import Proxy, proxying

HOST = "digits.team.example.com"
SECRET = "s3cr3t-passw0rd"


class Network:
    """An ingress named ingress.example, with and without TLS, proxies that connect to it, and their CA."""

    def __init__(self, folder: Path, opened: ExitStack) -> None:
        self.authority = trustme.CA()
        self.bundle = folder / "authority.pem"
        self.authority.cert_pem.write_to_path(self.bundle)
        self.server = Server()
        opened.callback(self.server.close)
        self.server.answering = lambda asked: Reply(200, json.dumps(asked.headers["host"]).encode())
        self.proxy: Proxy = opened.enter_context(proxying())
        self.secure_proxy: Proxy = opened.enter_context(proxying(self.tls("127.0.0.1")))
        self.secure = opened.enter_context(behind_tls(self.server, self.tls("ingress.example")))
        for proxy in (self.proxy, self.secure_proxy):
            plain = int(self.server.url.rpartition(":")[2])
            proxy.routes = {"ingress.example:80": plain, "ingress.example:443": self.secure}
        self.image = folder / "image.bin"
        self.image.write_bytes(b"x")

    def tls(self, name: str) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.authority.issue_cert(name).configure_cert(context)
        return context

    def ask(
        self, url: str, host: str | None = HOST, *, authority: Path | None = None
    ) -> Prediction | Failure:
        endpoint = Endpoint(url, host)
        [answer] = Client(endpoint, "digits", timeout=20, authority=authority).predict([self.image])
        return answer

    def value(self, url: str, host: str | None = HOST, *, authority: Path | None = None) -> object:
        answer = self.ask(url, host, authority=authority)
        assert isinstance(answer, Prediction), answer.error
        return answer.value

    def error(self, url: str, *, authority: Path | None = None) -> PredictError:
        answer = self.ask(url, authority=authority)
        assert isinstance(answer, Failure)
        assert SECRET not in f"{answer.error} {answer.error.hint} {answer.error.__cause__!r}"
        return answer.error


@contextmanager
def behind_tls(server: Server, tls: ssl.SSLContext) -> Iterator[int]:
    """Serve a server's requests over TLS; yield the port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                client, address = listener.accept()
            except OSError:
                return
            threading.Thread(target=handle, args=(client, address), daemon=True).start()

    def handle(client: socket.socket, address: tuple[str, int]) -> None:
        try:
            server._server.finish_request(tls.wrap_socket(client, server_side=True), address)
        except OSError:
            client.close()

    thread = threading.Thread(target=serve)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Network]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    with ExitStack() as opened:
        yield Network(tmp_path, opened)


@pytest.fixture
def proxied(network: Network, monkeypatch: pytest.MonkeyPatch) -> Network:
    """The same, with the proxy in the environment."""
    monkeypatch.setenv("HTTP_PROXY", network.proxy.url)
    monkeypatch.setenv("HTTPS_PROXY", network.proxy.url)
    return network


def test_the_host_header_is_kept_by_a_tunnel_through_the_proxy(proxied: Network) -> None:
    assert proxied.value("http://ingress.example") == HOST
    assert proxied.proxy.asked == [("CONNECT", "ingress.example:80", "ingress.example:80")]


def test_a_proxy_that_refuses_the_tunnel_gets_the_whole_url(proxied: Network) -> None:
    proxied.proxy.tunnels = proxied.proxy.strict = False
    assert proxied.value("http://ingress.example") == HOST
    connect, post = proxied.proxy.asked
    assert connect[0] == "CONNECT"
    assert post == ("POST", "http://ingress.example/predictions/digits", HOST)


def test_a_url_with_the_host_of_the_service_is_forwarded(proxied: Network) -> None:
    assert proxied.value("http://ingress.example", None) == "ingress.example"
    assert [method for method, *_ in proxied.proxy.asked] == ["POST"]


@pytest.mark.parametrize("by", ["option", "variable"])
def test_https_through_a_proxy_with_a_private_ca(
    proxied: Network, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by == "variable":
        monkeypatch.setenv("SSL_CERT_FILE", str(proxied.bundle))
    authority = proxied.bundle if by == "option" else None
    assert proxied.value("https://ingress.example", authority=authority) == HOST
    assert [asked[:2] for asked in proxied.proxy.asked] == [("CONNECT", "ingress.example:443")]


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_an_https_proxy_is_used(network: Network, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{scheme}_proxy", network.secure_proxy.url)
    monkeypatch.setenv("SSL_CERT_FILE", str(network.bundle))
    assert network.value(f"{scheme}://ingress.example") == HOST
    assert len(network.secure_proxy.asked) == 1


def test_an_untrusted_certificate_is_refused(proxied: Network) -> None:
    error = proxied.error("https://ingress.example")
    assert "TLS failed" in error.what
    assert "--certificate-authority" in error.hint
    other = proxied.bundle.with_name("other.pem")
    trustme.CA().cert_pem.write_to_path(other)
    assert "TLS failed" in proxied.error("https://ingress.example", authority=other).what


@pytest.mark.parametrize("content", [None, b"", b"no PEM", b"\xff\xfe", "a folder", "endless"])
@pytest.mark.parametrize("by", ["--certificate-authority", "SSL_CERT_FILE"])
def test_an_invalid_certificate_file_is_refused(
    network: Network, by: str, content: bytes | str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = Path("/dev/zero") if content == "endless" else tmp_path / "bundle"
    if content == "a folder":
        file.mkdir()
    elif isinstance(content, bytes):
        file.write_bytes(content)
    if by == "SSL_CERT_FILE":
        monkeypatch.setenv(by, str(file))
    with pytest.raises(ConfigError, match="cannot read the certificates") as caught:
        network.ask("https://ingress.example", authority=file if by.startswith("--") else None)
    assert caught.value.where == f"{by}: {file}"


def test_a_bundle_can_have_comments_that_are_not_ascii(proxied: Network, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes("# Főtanúsítvány\n".encode() + b"\xff\n" + proxied.bundle.read_bytes())
    assert proxied.value("https://ingress.example", authority=bundle) == HOST


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("password", [SECRET, f"ü/:@ {SECRET}"])
def test_a_proxy_with_a_password_is_used(
    network: Network, scheme: str, password: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from urllib.parse import quote

    network.proxy.login = f"me:{password}"
    named = network.proxy.url.replace("//", f"//me:{quote(password, safe='')}@")
    monkeypatch.setenv(f"{scheme.upper()}_PROXY", named)
    assert network.value(f"{scheme}://ingress.example", authority=network.bundle) == HOST
    monkeypatch.setenv(f"{scheme.upper()}_PROXY", named.replace(SECRET, f"{SECRET}x"))
    error = network.error(f"{scheme}://ingress.example", authority=network.bundle)
    assert f"cannot use the proxy {network.proxy.url}" in error.what
    assert "407" in error.what


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_an_unreachable_proxy_is_an_error(
    network: Network, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    monkeypatch.setenv(f"{scheme.upper()}_PROXY", f"http://me:{SECRET}@127.0.0.1:{port}")
    error = network.error(f"{scheme}://ingress.example", authority=network.bundle)
    assert f"cannot use the proxy http://127.0.0.1:{port}" in error.what
    assert "NO_PROXY" in error.hint


@pytest.mark.parametrize("named", ["socks5://me:s3cr3t-passw0rd@proxy.example", "http://", "http://a:b:c"])
def test_an_invalid_proxy_is_refused(network: Network, named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", named)
    with pytest.raises(ConfigError) as caught:
        network.ask("http://ingress.example")
    assert caught.value.where == "HTTP_PROXY"
    assert SECRET not in str(caught.value)


def test_loopback_and_hosts_in_no_proxy_use_no_proxy(
    proxied: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert proxied.value(proxied.server.url) == HOST
    assert proxied.value(proxied.server.url.replace("127.0.0.1", "localhost")) == HOST
    monkeypatch.setenv("no_proxy", "ingress.example")
    assert "cannot resolve the name" in proxied.error("http://ingress.example").what
    assert proxied.proxy.asked == []


def test_no_proxy_can_name_the_service(proxied: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", ".team.example.com")
    assert "cannot resolve the name" in proxied.error("http://ingress.example").what
    assert proxied.proxy.asked == []


# TLS with the host of the service


@pytest.fixture
def gateway(network: Network) -> Iterator[tuple[int, list[str | None]]]:
    """A gateway with a certificate for the host of the service, as KServe's; the names that TLS asks for."""
    asked: list[str | None] = []
    context = network.tls(HOST)
    context.sni_callback = lambda _socket, name, _context: asked.append(name)
    with behind_tls(network.server, context) as port:
        yield port, asked


@pytest.mark.parametrize("host", [HOST, f"{HOST}:8443"])
def test_an_address_is_verified_by_the_host_of_the_service(
    network: Network, gateway: tuple[int, list[str | None]], host: str
) -> None:
    port, asked = gateway
    assert network.value(f"https://127.0.0.1:{port}", host, authority=network.bundle) == host
    assert asked == [HOST]


def test_a_proxied_address_is_verified_by_the_host_of_the_service(
    proxied: Network, gateway: tuple[int, list[str | None]]
) -> None:
    port, asked = gateway
    proxied.proxy.routes |= {"203.0.113.9:443": port, "[2001:db8::1]:443": port, "lb.example:443": port}
    for address in ("203.0.113.9", "[2001:db8::1]"):
        assert proxied.value(f"https://{address}", authority=proxied.bundle) == HOST
    endpoint = Endpoint("https://lb.example", HOST, server_name=HOST)
    [answer] = Client(endpoint, "digits", authority=proxied.bundle).predict([proxied.image])
    assert isinstance(answer, Prediction)
    assert asked == [HOST] * 3


def test_a_certificate_for_another_host_is_refused(
    network: Network, gateway: tuple[int, list[str | None]]
) -> None:
    port, _ = gateway
    answer = network.ask(f"https://127.0.0.1:{port}", "other.example.com", authority=network.bundle)
    assert isinstance(answer, Failure)
    assert isinstance(answer.error, NotReachedError)
    assert "TLS failed, asked for other.example.com: " in answer.error.what
    assert "kdeploy status" in str(answer.error.hint)


def test_an_address_with_an_untrusted_certificate_names_the_variable(
    network: Network, gateway: tuple[int, list[str | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"https://127.0.0.1:{gateway[0]}"
    assert "SSL_CERT_FILE" in str(network.error(url).hint)
    monkeypatch.setenv("SSL_CERT_FILE", str(network.bundle))
    assert network.value(url) == HOST


# Time limits


Answering = Callable[[socket.socket, threading.Event], None]


@contextmanager
def listening(answering: Answering) -> Iterator[int]:
    """Handle each connection in a thread until the test ends."""
    over = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    threads = []

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=handle, args=(client,)))
            threads[-1].start()

    def handle(client: socket.socket) -> None:
        with suppress(OSError):
            answering(client, over)
        over.wait()
        client.close()

    threads.append(threading.Thread(target=serve))
    threads[0].start()
    try:
        yield listener.getsockname()[1]
    finally:
        over.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for thread in threads:
            thread.join()


def dripping(head: bytes, drop: bytes) -> Answering:
    """Send `head` immediately, then `drop` again and again."""

    def answer(client: socket.socket, over: threading.Event) -> None:
        client.recv(65536)
        client.sendall(head)
        while not over.wait(0.02):
            client.sendall(drop)

    return answer


LIMIT = 0.2  # seconds; each of these tests takes that long


def deaf(client: socket.socket, over: threading.Event) -> None:
    """Read a little again and again, so that no single send waits for long."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    while not over.wait(0.02):
        client.recv(1000)


OK = b"HTTP/1.1 200 OK\r\n"
SLOW: dict[str, Answering] = {
    "the status line": dripping(b"HTTP/1.1 200 ", b"O"),
    "headers": dripping(OK, b"X: y\r\n"),
    "one header": dripping(OK + b"X: ", b"y"),
    "the body": dripping(OK + b"Content-Length: 1000000\r\n\r\n", b"7"),
    "chunks": dripping(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n7\r\n"),
    "a body without an end": dripping(OK + b"\r\n", b"7"),
    "interim responses": dripping(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "reading the request": deaf,
}


@pytest.mark.parametrize("what", SLOW)
@pytest.mark.parametrize("how", ["direct", "tunnel"])
def test_a_slow_server_times_out(what: str, how: str, network: Network) -> None:
    network.image.write_bytes(b"x" * 5_000_000)
    with listening(SLOW[what]) as port:
        tunnel = None if how == "direct" else LocalTunnel(port)
        endpoint = Endpoint(f"http://127.0.0.1:{port}", HOST, tunnel)
        [answer] = Client(endpoint, "digits", timeout=LIMIT).predict([network.image])
    assert isinstance(answer, Failure)
    assert f"{LIMIT} s" in answer.error.what
    assert "--timeout" in (answer.error.hint or "")
    assert "died" not in (answer.error.hint or "")


class LocalTunnel:
    """A tunnel to a port of this machine. Implements deployer.targets.protocols.Tunnel."""

    fault = None

    def __init__(self, port: int) -> None:
        self._port = port
        self.pod = ("team", "ingress", port)

    def open(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self._port))


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_slow_proxy_times_out(scheme: str, network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(dripping(b"HTTP/1.1 200 Connection", b"x")) as port:
        monkeypatch.setenv(f"{scheme.upper()}_PROXY", f"http://127.0.0.1:{port}")
        [answer] = Client(Endpoint(f"{scheme}://ingress.example", HOST), "digits", timeout=LIMIT).predict(
            [network.image]
        )
    assert isinstance(answer, Failure)
    assert f"{LIMIT} s" in answer.error.what or "time" in answer.error.what


def test_a_server_that_starts_no_handshake_times_out(network: Network) -> None:
    with listening(dripping(b"", b"")) as port:
        [answer] = Client(Endpoint(f"https://127.0.0.1:{port}"), "digits", timeout=LIMIT).predict(
            [network.image]
        )
    assert isinstance(answer, Failure)
    assert f"{LIMIT} s" in answer.error.what


def test_a_slow_server_behind_tls_times_out(network: Network) -> None:
    tls = network.tls("127.0.0.1")

    def answer(client: socket.socket, over: threading.Event) -> None:
        with tls.wrap_socket(client, server_side=True) as secure:
            dripping(OK + b"Content-Length: 1000000\r\n\r\n", b"7")(secure, over)

    with listening(answer) as port:
        [answered] = Client(
            Endpoint(f"https://127.0.0.1:{port}"), "digits", timeout=0.5, authority=network.bundle
        ).predict([network.image])
    assert isinstance(answered, Failure)
    assert "is incomplete after 0.5 s" in answered.error.what


def test_connections_are_reused_and_each_exchange_has_its_time_limit(network: Network) -> None:
    network.server.answering = lambda asked: Reply(200, b"7")
    answers = Client(Endpoint(network.server.url, HOST), "digits", timeout=20).predict([network.image] * 40)
    assert [one.value for one in answers if isinstance(one, Prediction)] == [7] * 40
