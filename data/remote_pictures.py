"""Pictures named by URLs in data, fetched from public addresses only, in bounded time and space.

Such a URL is a stranger's wish of what this machine should ask for, so it must not reach what this machine alone can.
Proxies that the environment names are not used: they would look up again where a host is.
"""

import functools
import http.client
import io
import ipaddress
import re
import socket
import ssl
import string
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import quote, urljoin, urlsplit

from rebus.data.bad_data import BadRecord

_PORTS = {"http": 80, "https": 443}
_HEADERS = {"User-Agent": "rebus-lm", "Accept": "image/*", "Accept-Encoding": "identity", "Connection": "close"}
# Written out, since `is_global` differs between versions of Python and takes in multicast, 6to4 and NAT64. Of IPv6 all
# but 2000::/3 is left out. 168.63.129.16 looks public, but is where Azure serves its own machines.
_SPECIAL = """0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 168.63.129.16/32 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24
    192.0.2.0/24 192.88.99.0/24 192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4
    ::/3 2001::/23 2001:db8::/32 2002::/16 3fff::/20 4000::/2 8000::/1"""
_SPECIAL_NETWORKS = tuple(map(ipaddress.ip_network, _SPECIAL.split()))
_tls = functools.cache(ssl.create_default_context)


def is_public(address: str) -> bool:
    """Returns whether an IP address belongs to the open internet and hides no other address.

    Source: https://www.iana.org/assignments/iana-ipv4-special-registry and .../iana-ipv6-special-registry.
    """
    return "%" not in address and not any(ipaddress.ip_address(address) in network for network in _SPECIAL_NETWORKS)


@dataclass(frozen=True)
class RemotePictures:
    """Fetches pictures named by URLs, from public addresses only."""

    max_bytes: int = 20 * 2**20
    """Size of the largest file that is taken."""
    timeout_s: float = 10.0
    """Time for a whole fetch, with all its redirects."""
    max_redirects: int = 3
    """How often a fetch may be sent on to another URL."""

    def __post_init__(self):
        if self.max_bytes < 1:
            raise ValueError(f"max_bytes must be at least 1, got {self.max_bytes}")
        if not 0 < self.timeout_s <= 3600:
            raise ValueError(f"timeout_s must be above 0 and at most 3600, got {self.timeout_s}")
        if self.max_redirects < 0:
            raise ValueError(f"max_redirects must be at least 0, got {self.max_redirects}")

    def fetch(self, url: str) -> bytes:
        """Returns the file at a URL of http or https.

        Raises:
            BadRecord: "too_large" for a file of more than ``max_bytes``, "remote" for any other that is not to be had.
        """
        try:
            return self._follow(url, time.monotonic() + self.timeout_s)
        except _Refused as refused:
            reason, got = refused.args
        except (OSError, http.client.HTTPException) as error:
            reason, got = "remote", f"a failed connection ({type(error).__name__})"
        # Raised here, so that it has no cause: those of http.client quote what the server sent.
        raise BadRecord(reason, f"{url[:200]!r} must name a picture on a public server, got {got}")

    def _follow(self, url: str, deadline: float) -> bytes:
        for _ in range(self.max_redirects + 1):
            with _answer(url, deadline, num_bytes=2 * self.max_bytes + 2**20) as answer:
                try:
                    if answer.status not in (301, 302, 303, 307, 308):
                        return self._body(answer)
                    url = urljoin(url, answer.headers.get("Location", ""))
                except ValueError:  # of http.client at a chunk of negative size, of urljoin at brackets
                    raise _Refused("remote", "an answer that makes no sense") from None
        raise _Refused("remote", f"more than {self.max_redirects} redirects")

    def _body(self, answer: http.client.HTTPResponse) -> bytes:
        if answer.status != 200:
            raise _Refused("remote", f"status {answer.status}")
        if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise _Refused("remote", "a compressed answer, which was not asked for")
        body = b"" if (answer.length or 0) > self.max_bytes else answer.read(self.max_bytes + 1)
        if len(body) + (answer.length or 0) > self.max_bytes:
            raise _Refused("too_large", f"more than {self.max_bytes:,} bytes")
        if answer.length:
            raise _Refused("remote", "an answer that broke off")
        return body


class _Refused(Exception):
    """The reason of a refusal and what was got, never in a server's words."""


@contextmanager
def _answer(url: str, deadline: float, num_bytes: int) -> Iterator[http.client.HTTPResponse]:
    """Gives the answer to one request with its body unread, from one of the addresses that were checked."""
    scheme, host, target = _parts(url)
    places = _addresses(host, _PORTS[scheme], _left(deadline))
    if not all(is_public(address) for address, _ in places):
        raise _Refused("remote", "an address that is not public")
    with socket.create_connection(places[0], _left(deadline)) as plain:
        plain.settimeout(_left(deadline))
        with _tls().wrap_socket(plain, server_hostname=host) if scheme == "https" else plain as connected:
            connection = http.client.HTTPConnection(host)
            connection.sock = connected  # so it does not look the host up again
            connected.settimeout(_left(deadline))
            connection.request("GET", target, headers={"Host": f"[{host}]" if ":" in host else host, **_HEADERS})
            answer = http.client.HTTPResponse(_Received(connected, deadline, num_bytes))  # pyright: ignore
            answer.begin()
            yield answer


def _parts(url: str) -> tuple[str, str, str]:
    """Returns scheme, host and what to ask the host for, all in ASCII."""
    try:
        parts = urlsplit(url)
        port = parts.port
        host = (parts.hostname or "").encode("idna").decode()
        target = quote(f"{parts.path or '/'}?{parts.query}".removesuffix("?"), safe=string.punctuation)
    except ValueError:  # UnicodeError is one
        raise _Refused("remote", "a URL that cannot be read") from None
    if parts.scheme not in _PORTS:
        raise _Refused("remote", "a scheme other than http and https")
    if port not in (None, _PORTS[parts.scheme]):
        raise _Refused("remote", f"a port other than {_PORTS[parts.scheme]}")
    if "@" in parts.netloc or not re.fullmatch(r"[A-Za-z0-9._:-]+", host):
        raise _Refused("remote", "no plain name of a host")
    return parts.scheme, host, target


def _addresses(host: str, port: int, seconds: float) -> list[tuple[str, int]]:
    """Returns all addresses of a host, each with the port."""
    resolver = ThreadPoolExecutor(1)  # getaddrinfo knows no timeout; a slow one is left behind in its thread
    found = resolver.submit(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    resolver.shutdown(wait=False)
    return [(str(place[0]), port) for *_, place in found.result(seconds)]


class _Received(io.RawIOBase):
    """What a server sends, up to a deadline and so many bytes of headers, body and what stands between chunks."""

    def __init__(self, connected: socket.socket, deadline: float, num_bytes: int):
        self._connected, self._deadline, self._num_bytes = connected, deadline, num_bytes

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)  # http.client asks for it

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        self._connected.settimeout(_left(self._deadline))
        num_read = self._connected.recv_into(buffer)
        self._num_bytes -= num_read
        if self._num_bytes < 0:
            raise _Refused("too_large", "an answer that does not end")
        return num_read


def _left(deadline: float) -> float:
    if (seconds := deadline - time.monotonic()) <= 0:
        raise TimeoutError
    return seconds
