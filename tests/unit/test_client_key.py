"""Client keys: who counts as the same client."""

import hashlib

import pytest

from app.config_parsers import TrustedPeers, trusted_peers
from app.routing.client_key import ClientKeys

TRUSTING = ClientKeys("secret", trusted_peers("127.0.0.0/8, ::1/128 unix"))
WARY = ClientKeys("secret", None)


def key(keys=TRUSTING, peer="127.0.0.1", forwarded=None, token=None):
    environ = {"REMOTE_ADDR": peer}
    if forwarded is not None:
        environ["HTTP_X_FORWARDED_FOR"] = forwarded
    if token is not None:
        environ["HTTP_AUTHORIZATION"] = token
    return keys.derive(environ)


def test_a_token_names_the_client_wherever_it_calls_from():
    """005-R1"""
    one = key(token="Bearer abc", peer="192.0.2.1")
    assert one == key(token="bearer  abc", peer="192.0.2.2", forwarded="10.0.0.1")
    assert one != key(token="Bearer abd", peer="192.0.2.1")
    assert one != key(token="Bearer ABC", peer="192.0.2.1")


@pytest.mark.parametrize("token", ["Basic abc", "Bearer", "Bearer ", "", "abc"])
def test_without_a_bearer_token_the_address_counts(token):
    """005-R1"""
    assert key(token=token, peer="192.0.2.9") == key(peer="192.0.2.9")


@pytest.mark.parametrize("forwarded", [
    "192.0.2.7", "192.0.2.7:8080", " 192.0.2.7 , 10.0.0.1", "192.0.2.7,junk",
    "::ffff:192.0.2.7", "[::ffff:192.0.2.7]:443"])
def test_every_way_to_write_an_address_is_the_same_client(forwarded):
    """005-R2"""
    assert key(forwarded=forwarded) == key(peer="192.0.2.7")


@pytest.mark.parametrize("forwarded", ["[2001:db8::1]:443", "2001:DB8:0::1", "[2001:db8::1]"])
def test_every_way_to_write_a_v6_address_is_the_same_client(forwarded):
    """005-R2"""
    assert key(forwarded=forwarded) == key(forwarded="2001:db8::1")


@pytest.mark.parametrize("forwarded", [
    "", "unknown", "_hidden", "1.2.3", "1.2.3.4.5", "1.2.3.4:port", ", 192.0.2.7", "[::1",
    "١.2.3.4"])
def test_what_is_no_address_leaves_the_peer(forwarded):
    """005-R2"""
    assert key(forwarded=forwarded) == key()


def test_only_a_trusted_peer_is_believed():
    """005-R2"""
    assert key(peer="192.0.2.1", forwarded="10.0.0.1") == key(peer="192.0.2.1")
    assert key(WARY, forwarded="10.0.0.1") == key(WARY)
    assert key(peer="::ffff:127.0.0.1", forwarded="10.0.0.1") == key(peer="10.0.0.1")
    assert key(peer="", forwarded="10.0.0.1") == key(peer="10.0.0.1")
    nobody = ClientKeys("secret", TrustedPeers())
    assert key(nobody, peer="", forwarded="10.0.0.1") == key(nobody, peer="")


def test_the_key_says_nothing_without_the_secret():
    """005-R1"""
    digest = key(token="Bearer abc")
    assert digest != key(ClientKeys("other", None), token="Bearer abc")
    assert digest == key(ClientKeys("secret", None), token="Bearer abc")
    assert len(digest) == 32 and "abc" not in digest
    assert digest != hashlib.blake2b(b"token abc", digest_size=16).hexdigest()
    long = ClientKeys("x" * 500, None)
    assert key(long, token="Bearer abc") != key(ClientKeys("x" * 501, None), token="Bearer abc")


SESSIONS = ClientKeys("secret", None, ("x-session-id", "X-Other"))


def session_key(prompt_cache_key="", keys=SESSIONS, token="Bearer abc", **fields):
    return keys.derive({"HTTP_AUTHORIZATION": token, **fields}, prompt_cache_key)


def test_the_first_session_header_or_else_the_prompt_cache_key_tells_conversations_apart():
    """005-R14"""
    plain = session_key()
    assert plain == key(WARY, token="Bearer abc") == session_key(HTTP_X_THREAD_ID="1")
    # As replicas of earlier versions derive it.
    assert plain == hashlib.blake2b(
        b"token abc", key=hashlib.blake2b(b"secret").digest(), digest_size=16).hexdigest()
    one = session_key(HTTP_X_SESSION_ID="one")
    assert len({plain, one, session_key(HTTP_X_SESSION_ID="two"), session_key("three"),
                session_key(HTTP_X_OTHER="four"), session_key(HTTP_X_SESSION_ID="One")}) == 6
    assert one == session_key("any", HTTP_X_SESSION_ID="one", HTTP_X_OTHER="other")
    assert session_key("a", HTTP_X_SESSION_ID="") == session_key("a")
    assert session_key(HTTP_X_OTHER="four") == session_key("any", HTTP_X_OTHER="four")
    assert session_key("a", ClientKeys("secret", None)) == session_key("a")
    assert session_key(HTTP_X_SESSION_ID="one", token="Bearer abd") not in (plain, one)
    assert session_key("b", token="Bearer a") != session_key("", token="Bearer ab")


def test_of_what_names_a_conversation_512_bytes_count():
    """005-R14"""
    for kwargs in ({"prompt_cache_key": "{}"}, {"HTTP_X_SESSION_ID": "{}"}):
        [(name, _)] = kwargs.items()
        keys = {session_key(**{name: "x" * many}) for many in (510, 511, 512, 513, 600)}
        assert len(keys) == 3
    assert session_key("é" * 256) == session_key("é" * 256 + "x") != session_key("é" * 255)
    # The last of these bytes may be half a character.
    assert session_key("x" + "é" * 300) != session_key("y" + "é" * 300)


def test_a_token_is_never_taken_for_an_address():
    """005-R1"""
    assert key(token="Bearer 192.0.2.7") != key(peer="192.0.2.7")
