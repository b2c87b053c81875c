"""Which certificates of the upstream are trusted."""

import contextlib
import datetime
import os
import socket

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.support.router import Router
from tests.support.upstream import Upstream


def named_by_its_subject_only(authority):
    """Return a certificate with its key: for CN=localhost, without a subjectAltName."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.timezone.utc)
    ca = x509.load_pem_x509_certificate(authority.cert_pem.bytes())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    certificate = x509.CertificateBuilder(
        ca.subject, name, key.public_key(), x509.random_serial_number(),
        now - datetime.timedelta(days=1), now + datetime.timedelta(days=1)).sign(
            serialization.load_pem_private_key(authority.private_key_pem.bytes(), None),
            hashes.SHA256())
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption()) + certificate.public_bytes(serialization.Encoding.PEM)


def issued(authority, *names):
    leaf = authority.issue_cert(*names)
    return leaf.private_key_pem.bytes() + b"".join(pem.bytes() for pem in leaf.cert_chain_pems)


@pytest.mark.parametrize("kind, status", [
    ("its own name", 200), ("another name", 502), ("its name as the subject's only", 502),
    ("another authority's", 502)])
def test_a_certificate_must_name_the_host_and_come_from_the_authority(
        upstream, tmp_path, kind, status):
    """002-R10"""
    authority = trustme.CA()
    pem = {"its own name": lambda: issued(authority, "localhost"),
           "another name": lambda: issued(authority, "other.test", "127.0.0.1"),
           "its name as the subject's only": lambda: named_by_its_subject_only(authority),
           "another authority's": lambda: issued(trustme.CA(), "localhost")}[kind]()
    (tmp_path / "leaf.pem").write_bytes(pem)
    (tmp_path / "ca.pem").write_bytes(authority.cert_pem.bytes())
    with Upstream(tls=str(tmp_path / "leaf.pem")) as secure, Router(
            upstream.url, BACKEND_BASE_URL=secure.url.replace("127.0.0.1", "localhost"),
            REQUESTS_CA_BUNDLE=str(tmp_path / "ca.pem"), UNKNOWN_MODELS="pass") as router:
        answer = router.chat("a")
        assert answer.status == status
        assert status == 200 or answer.error["code"] == "upstream_connect_error"
        assert bool(secure.exchanges) is (status == 200)


def test_a_record_that_is_dripped_is_silence(upstream, tmp_path):
    """006-W2"""
    authority = trustme.CA()
    (tmp_path / "leaf.pem").write_bytes(issued(authority, "localhost"))
    (tmp_path / "ca.pem").write_bytes(authority.cert_pem.bytes())

    def drip_a_record(exchange):
        exchange.head(200, ("Transfer-Encoding", "chunked"))
        exchange.chunk(b"whole")
        with socket.socket(fileno=os.dup(exchange.sock.fileno())) as below:
            # A record of application data of 16 KiB begins, and then a byte every 100 ms.
            below.sendall(b"\x17\x03\x03\x40\x00")
            with contextlib.suppress(OSError):
                while not exchange.closed.wait(0.1):
                    below.sendall(b"x")

    with Upstream(tls=str(tmp_path / "leaf.pem")) as secure, Router(
            upstream.url, BACKEND_BASE_URL=secure.url.replace("127.0.0.1", "localhost"),
            REQUESTS_CA_BUNDLE=str(tmp_path / "ca.pem"), UNKNOWN_MODELS="pass",
            UPSTREAM_IDLE_TIMEOUT_MS="500") as router:
        secure.on("a", drip_a_record)
        answer = router.chat("a")
        assert (answer.status, answer.ended) == (200, "cut")
        assert router.record(answer.value("X-Request-Id"))["cut_cause"] == "silence"
