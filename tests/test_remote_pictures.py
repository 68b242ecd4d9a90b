import gzip
import http.server
import ipaddress
import socket
import ssl
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebus.data import remote_pictures
from rebus.data.bad_data import BadRecord
from rebus.data.remote_pictures import RemotePictures, is_public

PICTURE = bytes(range(256)) * 11
PICTURES = RemotePictures(max_bytes=len(PICTURE), timeout_s=5.0)
URL = "http://pictures.test/good"

NOT_PUBLIC = """
    0.0.0.0 0.1.2.3 10.0.0.1 100.64.0.1 100.100.100.200 100.127.255.255 127.0.0.1 127.255.255.254 168.63.129.16
    169.254.169.254 172.16.0.1 172.31.255.255 192.0.0.8 192.0.0.9 192.0.0.192 192.0.2.1 192.88.99.1 192.168.1.1
    198.18.0.1 198.19.255.255 198.51.100.1 203.0.113.1 224.0.0.1 233.252.0.1 239.255.255.255 240.0.0.1 255.255.255.255
    :: ::1 ::127.0.0.1 ::8.8.8.8 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 ::ffff:8.8.8.8
    ::ffff:0:127.0.0.1 64:ff9b::7f00:1 64:ff9b::808:808 64:ff9b:1::7f00:1 100::1 2001::1
    2001:0:4136:e378:8000:63bf:80ff:fffe 2001:2::1 2001:10::1 2001:20::1 2001:db8::1 2002:7f00:1::1 2002:a00:1::1
    2002:808:808::1 3fff::1 4000::1 5f00::1 fc00::1 fd00:ec2::254 fe80::1 fe80::1%eth0 2606:4700:4700::1111%1 fec0::1
    ff02::1 ff0e::1
""".split()
PUBLIC = "8.8.8.8 1.1.1.1 100.63.255.255 100.128.0.1 172.32.0.1 2606:4700:4700::1111 2001:4860:4860::8888".split()


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_special_addresses_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_ordinary_addresses_are_public(address):
    assert is_public(address)


@given(st.integers(0, 2**32 - 1))
def test_version_4_addresses_hidden_in_version_6_are_never_public(number):
    plain = ipaddress.IPv4Address(number)
    forms = [
        f"::ffff:{plain}",
        f"::{plain}",
        f"64:ff9b::{plain}",
        str(ipaddress.IPv6Address(0x2002 << 112 | number << 80)),
    ]
    assert not any(map(is_public, forms))


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6), st.ip_addresses(network="2000::/3")))
def test_what_is_public_is_global_and_not_multicast_for_the_standard_library_too(address):
    assert not is_public(str(address)) or (address.is_global and not address.is_multicast)


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers by the path: what to send, and in what pieces."""

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.server.asked.append((self.path, dict(self.headers)))
        name = self.path.strip("/").split("?")[0]
        getattr(self, name, self.other)()

    def answer(self, status=200, body=PICTURE, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def other(self):
        status, _, location = self.path.strip("/").partition("/to/")
        if location:
            return self.answer(int(status), b"moved", Location=location, Content_Length=5)
        self.send_error(404, "secret words of a server")

    def good(self):
        self.answer(Content_Length=len(PICTURE))

    def without_length(self):
        self.answer()

    def chunked(self):
        self.protocol_version = "HTTP/1.1"
        chunks = [PICTURE[start : start + 1000] for start in range(0, len(PICTURE), 1000)]
        body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in [*chunks, b""])
        self.answer(body=body, Transfer_Encoding="chunked")

    def large(self):
        self.answer(Content_Length=len(PICTURE) + 1, body=b"")  # the body never comes: the length alone is refused

    def large_without_length(self):
        self.answer(body=PICTURE + b"1")

    def endless_chunk(self):
        self.protocol_version = "HTTP/1.1"
        self.answer(body=b"-1\r\n" + bytes(2**22), Transfer_Encoding="chunked")

    def broken_off(self):
        self.answer(body=PICTURE[:-1], Content_Length=len(PICTURE))

    def zipped(self):
        self.answer(body=gzip.compress(PICTURE), Content_Encoding="gzip")

    def partial(self):
        self.answer(206)

    def nowhere(self):
        self.answer(302, Location="http://[half")

    def lost(self):
        self.answer(302)

    def loop(self):
        self.answer(302, Location="/loop")

    def slow_headers(self):
        self.drip(b"HTTP/1.0 200 OK\r\nServer: ")

    def slow_body(self):
        self.drip(b"HTTP/1.0 200 OK\r\n\r\n")

    def drip(self, start):
        self.wfile.write(start)
        while not self.server.closing.wait(0.02):
            self.wfile.write(b"x")


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass  # clients that hang up are what is tested


@pytest.fixture(scope="module")
def running_server():
    server = Server(("127.0.0.1", 0), Handler)
    server.asked, server.closing = [], threading.Event()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.closing.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def server(running_server, monkeypatch):
    """Hosts of this test: one is served here, at an address that counts as public; others have a private address."""
    here = ("127.0.0.1", running_server.server_address[1])
    places = {"pictures.test": [here], "mixed.test": [here, ("10.0.0.1", 80)], "private.test": [("10.0.0.1", 80)]}
    running_server.asked, running_server.resolved = [], []

    def addresses(host, port, seconds):
        running_server.resolved.append(host)
        return places[host]

    monkeypatch.setattr(remote_pictures, "_addresses", addresses)
    monkeypatch.setattr(remote_pictures, "is_public", lambda address: address == here[0] or is_public(address))
    return running_server


def refusal(url, pictures=PICTURES):
    """Returns the reason and the message with which a URL is refused."""
    with pytest.raises(BadRecord) as caught:
        pictures.fetch(url)
    assert caught.value.__cause__ is None and caught.value.__context__ is None  # they would quote the server
    return caught.value.reason, str(caught.value)


@pytest.mark.parametrize("path", ["good", "good?size=1#part", "without_length", "chunked"])
def test_a_picture_comes_back_as_it_is(server, path):
    assert PICTURES.fetch(f"http://pictures.test/{path}") == PICTURE
    assert len(server.asked) == len(server.resolved) == 1
    path, headers = server.asked[0]
    assert headers["Host"] == "pictures.test" and headers["Accept-Encoding"] == "identity" and headers["User-Agent"]
    assert "#" not in path


def test_what_is_not_ascii_in_a_path_is_quoted_and_what_is_quoted_is_left(server):
    assert PICTURES.fetch("http://pictures.test/good?\u732b=a b%20c") == PICTURE
    assert server.asked[0][0] == "/good?%E7%8C%AB=a%20b%20c"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("location", ["http://pictures.test/good", "/good", "../../good", "//pictures.test/good"])
def test_redirects_are_followed_and_each_resolves_once(server, status, location):
    assert PICTURES.fetch(f"http://pictures.test/{status}/to/{location}") == PICTURE
    assert server.resolved == ["pictures.test"] * 2


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("http://private.test/", "an address that is not public"),
        ("http://mixed.test/", "an address that is not public"),
        ("file:///etc/passwd", "a scheme other than"),
        ("http://pictures.test:22/", "a port other than 80"),
        ("http://user@pictures.test/", "no plain name of a host"),
    ],
)
def test_redirects_are_checked_like_the_first_url(server, location, message):
    reason, text = refusal(f"http://pictures.test/302/to/{location}")
    assert reason == "remote" and message in text and len(server.asked) == 1


@pytest.mark.parametrize("path", ["loop", "lost"])
def test_redirects_end(server, path):
    assert "more than 2 redirects" in refusal(f"http://pictures.test/{path}", RemotePictures(max_redirects=2))[1]
    assert len(server.asked) == len(server.resolved) == 3
    assert "more than 0 redirects" in refusal("http://pictures.test/302/to/good", RemotePictures(max_redirects=0))[1]


@pytest.mark.parametrize("host", ["private.test", "mixed.test"])
def test_a_host_of_which_any_address_is_private_is_not_asked(server, host):
    assert "an address that is not public" in refusal(f"http://{host}/good")[1]
    assert not server.asked


@pytest.mark.parametrize(
    ("path", "reason", "message"),
    [
        ("large", "too_large", "more than 2,816 bytes"),
        ("large_without_length", "too_large", "more than 2,816 bytes"),
        ("endless_chunk", "too_large", "an answer that does not end"),
        ("broken_off", "remote", "an answer that broke off"),
        ("zipped", "remote", "a compressed answer"),
        ("missing", "remote", "status 404"),
        ("partial", "remote", "status 206"),
        ("nowhere", "remote", "an answer that makes no sense"),
    ],
)
def test_what_is_no_whole_picture_is_refused(server, path, reason, message):
    got_reason, text = refusal(f"http://pictures.test/{path}")
    assert got_reason == reason and message in text and f"'http://pictures.test/{path}' must" in text
    assert "secret" not in text


@pytest.mark.parametrize("path", ["slow_headers", "slow_body"])
def test_drips_are_cut_off(server, path):
    start = time.monotonic()
    reason, text = refusal(f"http://pictures.test/{path}", RemotePictures(timeout_s=0.3))
    assert reason == "remote" and "TimeoutError" in text
    assert 0.25 < time.monotonic() - start < 3  # alone, it would end with this file


def test_the_deadline_holds_for_redirects_together(server, monkeypatch):
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(remote_pictures.time, "monotonic", lambda: float(next(clock)))
    assert "TimeoutError" in refusal("http://pictures.test/loop", RemotePictures(timeout_s=60.0, max_redirects=99))[1]
    assert 1 < len(server.asked) < 9


def test_a_slow_resolver_is_left_behind(monkeypatch):
    answered = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: answered.wait(5))
    start = time.monotonic()
    assert "TimeoutError" in refusal("http://pictures.test/", RemotePictures(timeout_s=0.1))[1]
    assert time.monotonic() - start < 3
    answered.set()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("file:///etc/passwd", "a scheme other than"),
        ("ftp://pictures.test/good", "a scheme other than"),
        ("data:image/png;base64,AAAA", "a scheme other than"),
        ("/etc/passwd", "a scheme other than"),
        ("", "a scheme other than"),
        ("http://user:password@pictures.test/good", "no plain name of a host"),
        ("http://private.test\\@pictures.test/good", "no plain name of a host"),
        ("http://pictures.test\\.private.test/good", "no plain name of a host"),
        ("http://[fe80::1%25eth0]/", "no plain name of a host"),
        ("http://pictures.test\0.private.test/", "no plain name of a host"),
        ("http:///good", "no plain name of a host"),
        ("http://pictures.test:8080/good", "a port other than 80"),
        ("https://pictures.test:80/good", "a port other than 443"),
        ("http://pictures.test:many/good", "a URL that cannot be read"),
        ("http://[::1/good", "a URL that cannot be read"),
        (f"http://{'a' * 64}.test/", "a URL that cannot be read"),
        ("http://pictures..test/", "a URL that cannot be read"),
        ("http://pictures.test/\ud800", "a URL that cannot be read"),
    ],
)
def test_other_urls_are_refused_before_anything_is_resolved(server, url, message):
    reason, text = refusal(url)
    assert reason == "remote" and message in text and text.encode()
    assert not server.resolved


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "2130706433", "0x7f000001", "0x7f.1", "127.1", "0177.0.0.1", "0", "localhost", "[::1]"]
    + ["[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "169.254.169.254", "[fd00:ec2::254]", "\uff11\uff12\uff17\u30020.0.1"],
)
def test_no_spelling_of_a_private_address_is_asked(monkeypatch, host):
    monkeypatch.setattr(socket, "create_connection", lambda *args: pytest.fail("connected"))
    assert "an address that is not public" in refusal(f"http://{host}/")[1]


def test_the_address_that_was_checked_is_the_one_that_is_asked(monkeypatch):
    answers = iter(["8.8.8.8", "127.0.0.1"])  # a server of names that changes its mind
    asked = []

    def connect(place, timeout):
        asked.append(place)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "getaddrinfo", lambda host, port, type: [(2, type, 6, "", (next(answers), port))])
    monkeypatch.setattr(socket, "create_connection", connect)
    assert "a failed connection (ConnectionRefusedError)" in refusal(URL)[1]
    assert asked == [("8.8.8.8", 80)] and list(answers) == ["127.0.0.1"]


def test_a_secure_connection_is_for_the_name_of_the_host(server, monkeypatch):
    class Context:
        def wrap_socket(self, plain, server_hostname):
            names.append(server_hostname)
            return plain

    names = []
    monkeypatch.setattr(remote_pictures, "_tls", Context)
    assert PICTURES.fetch("https://pictures.test/good") == PICTURE
    assert names == ["pictures.test"]


def test_certificates_are_required_and_a_server_without_is_refused(server):
    context = remote_pictures._tls()
    assert context.check_hostname and context.verify_mode == ssl.CERT_REQUIRED
    assert "a failed connection (SSLError)" in refusal("https://pictures.test/good")[1]
    assert not server.asked


def test_errors_of_ours_stay_errors(monkeypatch):
    def addresses(host, port, seconds):
        raise TypeError("a mistake")

    monkeypatch.setattr(remote_pictures, "_addresses", addresses)
    with pytest.raises(TypeError, match="a mistake"):
        PICTURES.fetch(URL)


def test_long_urls_are_shortened_in_messages(server):
    assert len(refusal("http://pictures.test:1/" + "a" * 10_000)[1]) < 300


HEADERS = ["Content-Length: 3", "Content-Length: -1", "Content-Length: 9" + "9" * 5000, "Transfer-Encoding: chunked"]
HEADERS += ["Location: //[", "Content-Encoding: br", "no colon", ": empty", "\xff: \xfe", " folded"]
CHUNKS = [b"-5\r\n", b"-1\r\nabc", b"3\r\nabc\r\n", b"0\r\n\r\n", b"x\r\n", b"f" * 40 + b"\r\n", b";\r\n", b"abc"]


@given(
    status=st.sampled_from(
        ["HTTP/1.1 200 OK", "HTTP/1.1 200", "HTTP/1.1 302 -", "HTTP/1.1 100 -", "HTTP/9 200 OK", "no"]
    ),
    headers=st.lists(st.sampled_from(HEADERS), max_size=3),
    body=st.lists(st.one_of(st.sampled_from(CHUNKS), st.binary(max_size=9)), max_size=4),
)
def test_whatever_a_server_says_gives_bytes_or_a_bad_record(status, headers, body):
    said = "\r\n".join([status, *headers, "", ""]).encode("latin-1") + b"".join(body)

    def connect(place, timeout):
        ours, theirs = socket.socketpair()
        theirs.sendall(said)
        theirs.shutdown(socket.SHUT_WR)
        ends.append(theirs)
        return ours

    ends = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote_pictures, "_addresses", lambda *args: [("8.8.8.8", 80)])
        patch.setattr(socket, "create_connection", connect)
        try:
            assert len(PICTURES.fetch(URL)) <= PICTURES.max_bytes
        except BadRecord as error:
            assert error.reason in ("remote", "too_large") and "9" * 9 not in str(error)
        finally:
            for end in ends:
                end.close()


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_bytes", 0), ("timeout_s", 0.0), ("timeout_s", float("nan")), ("timeout_s", 1e9), ("max_redirects", -1)],
)
def test_settings_that_make_no_sense_are_refused(field, value):
    with pytest.raises(ValueError, match=f"{field} must be .*, got {value}"):
        RemotePictures(**{field: value})
