"""The environment as one value."""

import dataclasses
import os

import pytest

from app.config import Config, ConfigError, load_config
from app.config_parsers import TrustedPeers

NAMES = [field.metadata["name"] for field in dataclasses.fields(Config)]


@pytest.fixture
def environment(monkeypatch):
    """Return a function that sets variables on top of an environment without any of ours."""
    for name in NAMES:
        for spelling in (name, name.lower()):
            monkeypatch.delenv(spelling, raising=False)

    def given(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return load_config()
    return given


def refused(environment):
    """Return the names that the error of a bad environment begins its lines with."""
    with pytest.raises(ConfigError) as caught:
        load_config(environment)
    return [line.partition(":")[0] for line in str(caught.value).splitlines()]


def test_no_bad_variable_hides_another():
    """001-R3: neither a byte that is no UTF-8, nor a check of two variables together."""
    assert refused({"MODELS_URL": "http://\udcff", "MAX_ATTEMPTS": "x"}) == [
        "MODELS_URL", "MAX_ATTEMPTS"]
    assert refused({"LISTEN_ADDR": "x", "HEALTH_LISTEN_ADDR": "127.0.0.1:1"}) == ["LISTEN_ADDR"]


def test_the_defaults_are_a_working_configuration(environment):
    """001-R2"""
    config = environment()
    assert config.backend_base_url == "https://llm.chutes.ai"
    assert (config.max_attempts, config.sticky_ttl_secs, config.trust_proxy_headers) == (
        8, 1800, False)
    assert config.effective()["LISTEN_ADDR"] == "0.0.0.0:8080"
    assert list(config.effective()) == NAMES


@pytest.mark.parametrize("text, value", [
    ("true", True), ("ON", True), ("yes", True), ("1", True), ("False", False), ("off", False),
    ("no", False), ("0", False)])
def test_every_spelling_of_yes_and_no(environment, text, value):
    """001-R2"""
    assert environment(TRUST_PROXY_HEADERS=text).trust_proxy_headers is value


@pytest.mark.parametrize("name, value", [
    *((name, value) for name in ("MAX_ATTEMPTS", "UPSTREAM_IDLE_TIMEOUT_MS")
      for value in ("", " ", "x", "1.5", "1e3", "-1", "0", "+1", " 1", "1_000", "٣", "9" * 40)),
    ("STICKY_TTL_SECS", "-1"), ("TRUST_PROXY_HEADERS", ""), ("TRUST_PROXY_HEADERS", "2"),
    ("LISTEN_ADDR", ""), ("LISTEN_ADDR", "8080"), ("LISTEN_ADDR", "host:0"),
    ("LISTEN_ADDR", "host:65536"), ("LISTEN_ADDR", "unix:relative"), ("LISTEN_ADDR", "::1:80"),
    ("BACKEND_BASE_URL", ""), ("BACKEND_BASE_URL", "example.test"),
    ("BACKEND_BASE_URL", "http://x:port"), ("BACKEND_BASE_URL", "http://x?a=b"),
    ("BACKEND_BASE_URL", "http://x/ y"), ("MODELS_URL", "file:///etc/passwd"),
    ("BACKEND_BASE_URL", "http://x?"), ("BACKEND_BASE_URL", "http://x/#"),
    *((name, value) for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "http_proxy")
      for value in ("socks5://x:1", "http://x:port", "http://", "x y", "ftp://x", "foo",
                    "127.0.0.1:9")),
    ("REQUESTS_CA_BUNDLE", "/nowhere/ca.pem"), ("REQUESTS_CA_BUNDLE", "/etc/passwd"),
    ("BACKEND_BASE_URL", "http://x/v1"), ("BACKEND_BASE_URL", "http://x/v1/"),
    ("BACKEND_BASE_URL", "http://x/base/v1/chat/completions"),
    ("REQUESTS_CA_BUNDLE", "/etc"), ("MODELS_REFRESH_MS", "1"), ("UTILIZATION_REFRESH_MS", "19"),
    ("CONTROL_PLANE_TIMEOUT_MS", "1"), ("CONTROL_PLANE_TIMEOUT_MS", "99"),
    ("LISTEN_ADDR", "[:::::]:80"), ("LISTEN_ADDR", "unix:/nowhere/router.sock"),
    ("LISTEN_ADDR", "unix:/" + "x" * 107), ("WORKER_CONNECTIONS", "100001"),
    *(("CORS_ALLOW_ORIGINS", value) for value in (
        "https://a.example/", "a.example", "null", "https://A.example", "https://a.example:x",
        "file://a", "https://*.example")),
    ("STATE_DIR", "/nowhere"), ("STATE_DIR", "/etc/hostname"),
    ("UTILIZATION_URL", "https://"), ("TRUSTED_PROXY_CIDRS", "localhost"), ("LOG_LEVEL", ""),
])
def test_a_bad_value_is_refused_with_name_value_and_what_was_expected(environment, name, value):
    """001-R3, 001-R4"""
    with pytest.raises(ConfigError) as caught:
        environment(**{name: value})
    assert str(caught.value).startswith(f"{name}: got {value!r}, expected ")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("text, peers", [
    ("", TrustedPeers()), ("unix", TrustedPeers((), True)),
    ("10.0.0.0/8,192.0.2.1 unix", None), (" ::1/128 ,, 10.0.0.1/8 ", None)])
def test_trusted_peers_are_networks_and_the_word_unix(environment, text, peers):
    """005-R2"""
    got = environment(TRUSTED_PROXY_CIDRS=text).trusted_proxy_cidrs
    if peers is not None:
        assert got == peers
    else:
        assert len(got.networks) == 2 and got.unix is ("unix" in text)


@pytest.mark.parametrize("text", ["127.0.0.1:80", "[::1]:8080", "host.name:1", "unix:/run/a.sock"])
def test_every_form_of_a_listen_address(environment, text):
    """001-R2"""
    assert environment(LISTEN_ADDR=text).listen_addr == text


def test_a_path_with_v1_elsewhere_is_a_base(environment):
    """002-R10"""
    for base in ("http://x/v1/base", "http://x/av1", "http://v1", "http://x/v10"):
        assert environment(BACKEND_BASE_URL=base).backend_base_url == base


def test_a_directory_of_certificates_is_one_that_openssl_reads(environment, tmp_path):
    """001-R4"""
    (tmp_path / "0a1b2c3d.0").touch()
    assert environment(REQUESTS_CA_BUNDLE=str(tmp_path)).ca_bundle == str(tmp_path)


def test_a_trailing_slash_of_the_base_url_does_not_double(environment):
    """002-R10"""
    assert environment(BACKEND_BASE_URL="http://x/base/").backend_base_url == "http://x/base"


def test_a_secret_is_in_no_text_form_of_the_configuration(environment):
    """001-R5, 001-R7"""
    config = environment(STICKY_HASH_SECRET="hunter2")
    assert "hunter2" not in repr(config) + str(config.effective())
    assert config.effective()["STICKY_HASH_SECRET"] == "****"


def test_a_secret_that_is_no_text_is_refused_and_not_shown(environment):
    """001-R4, 001-R7"""
    with pytest.raises(ConfigError) as caught:
        environment(STICKY_HASH_SECRET="hunter2\udcff")
    assert str(caught.value) == "STICKY_HASH_SECRET: got '****', expected text in UTF-8."


def test_a_shared_store_needs_a_secret_that_its_replicas_share(environment):
    """005-R9"""
    with pytest.raises(ConfigError) as caught:
        environment(STICKY_URL="redis://localhost")
    assert str(caught.value) == (
        "STICKY_HASH_SECRET: got '', expected a secret that all replicas share, "
        "with a STICKY_URL.")
    for url in ("redis://:pw@h:1/0", "rediss://h", "unix:///run/redis.sock?db=1"):
        config = environment(STICKY_URL=url, STICKY_HASH_SECRET="s")
        assert config.sticky_url == url and "pw" not in repr(config) + str(config.effective())
    for url in ("http://h", "redis://:hunt/er2@h/0", "redis://h:99999/0", "redis://h:0",
                "redis://h?socket_timeout=abc", "valkey://h/0?password=hunter2", "redis://"):
        with pytest.raises(ConfigError, match="STICKY_URL: got '\\*\\*\\*\\*'"):
            environment(STICKY_URL=url, STICKY_HASH_SECRET="s")


@pytest.mark.parametrize("variables, of_https, of_http", [
    ({}, "", ""), ({"HTTPS_PROXY": "http://a:1"}, "http://a:1", ""),
    ({"HTTP_PROXY": "http://b:1", "ALL_PROXY": "https://c"}, "https://c", "http://b:1"),
    ({"HTTPS_PROXY": "http://a", "https_proxy": "http://b"}, "http://b", ""),
    ({"HTTPS_PROXY": "http://a", "https_proxy": "", "all_proxy": "http://c"}, *["http://c"] * 2),
    ({"ALL_PROXY": "http://a", "no_proxy": "other.test,.test"}, "", ""),
    ({"ALL_PROXY": "http://a", "NO_PROXY": "x.test", "no_proxy": ""}, *["http://a"] * 2)])
def test_the_proxy_of_a_url(variables, of_https, of_http):
    """001-R2: the lower-case spelling wins, also where it is empty."""
    config = load_config(variables)
    assert [config.proxy_for(f"{scheme}://x.test/v1") for scheme in ("https", "http")] == [
        of_https, of_http]


def test_a_bad_proxy_is_refused_by_the_name_it_was_given_with():
    """001-R4"""
    assert refused({"https_proxy": "socks5://x", "HTTPS_PROXY": "http://x"}) == ["https_proxy"]


def test_a_proxys_password_is_starred(environment):
    """001-R7"""
    for name in ("HTTPS_PROXY", "http_proxy", "ALL_PROXY"):
        config = environment(**{name: "http://user:hunter2@proxy.test:3128"})
        assert config.effective()[name.upper()] == "****" and "hunter2" not in repr(config)
    assert environment(MODELS_URL="http://x/?key=5").effective()["MODELS_URL"] == "****"


def test_dollar_signs_in_values_are_not_expanded(environment):
    """001-R2"""
    assert environment(STICKY_HASH_SECRET="a$HOME${HOME}").sticky_hash_secret == "a$HOME${HOME}"


@pytest.mark.parametrize("given, limit", [
    ("90%", 1800), ("5", 5), ("100%", 1999), ("1%", 20), ("5000", 1999)])
def test_the_limit_of_requests_is_a_number_or_a_share(monkeypatch, given, limit):
    """007-R1"""
    monkeypatch.setenv("MAX_INFLIGHT_REQUESTS", given)
    config = load_config()
    assert config.max_inflight_requests.resolve(config.worker_connections) == limit
    assert config.effective()["MAX_INFLIGHT_REQUESTS"] == given
    assert config.max_inflight_requests.resolve(1) >= 1


@pytest.mark.parametrize("given", ["0", "0%", "101%", "%", "90 %", "-1", "", "many"])
def test_a_limit_that_is_neither_is_refused(monkeypatch, given):
    """007-R1, 001-R4"""
    monkeypatch.setenv("MAX_INFLIGHT_REQUESTS", given)
    with pytest.raises(ConfigError, match="MAX_INFLIGHT_REQUESTS"):
        load_config()


@pytest.mark.parametrize("given", [
    "127.0.0.1", "0.0.0.0:8080", "127.0.0.1:8080", "[::]:8080", "localhost:8080", "unix:",
    "unix:/tmp/", "x:99999"])
def test_a_health_address_must_be_one_and_another(monkeypatch, given):
    """007-R2, 001-R4"""
    monkeypatch.setenv("HEALTH_LISTEN_ADDR", given)
    with pytest.raises(ConfigError, match="HEALTH_LISTEN_ADDR"):
        load_config()


def test_a_value_that_is_no_text_is_refused_in_a_sentence(monkeypatch, tmp_path):
    """001-R4"""
    path = os.fsencode(tmp_path) + b"/\xff"
    os.mkdir(path)
    monkeypatch.setenv("STATE_DIR", os.fsdecode(path))
    with pytest.raises(ConfigError, match="STATE_DIR: .* expected text in UTF-8"):
        load_config()


@pytest.mark.parametrize("one, other, collide", [
    ("0.0.0.0:80", "[::1]:80", False), ("127.0.0.1:80", "127.0.0.2:80", False),
    ("127.0.0.1:80", "localhost:80", True), ("unix:/tmp/a", "unix:/tmp/./a", True),
    ("unix:/tmp/a", "unix:/tmp/b", False), ("unix:/tmp/a", "[::]:80", False)])
def test_addresses_collide_where_both_cannot_be_listened_on(environment, one, other, collide):
    """007-R2, 001-R4"""
    for addresses in ((one, other), (other, one)):
        settings = dict(zip(("LISTEN_ADDR", "HEALTH_LISTEN_ADDR"), addresses))
        if collide:
            with pytest.raises(ConfigError, match="HEALTH_LISTEN_ADDR"):
                environment(**settings)
        else:
            assert environment(**settings).addresses == list(addresses)


def test_the_addresses_are_the_services_and_the_probes(monkeypatch):
    """007-R2"""
    assert load_config().addresses == ["0.0.0.0:8080"]
    monkeypatch.setenv("HEALTH_LISTEN_ADDR", "0.0.0.0:8081")
    assert load_config().addresses == ["0.0.0.0:8080", "0.0.0.0:8081"]


def test_session_headers_keep_their_order(environment):
    """005-R14"""
    assert environment().sticky_session_headers == (
        "x-session-id", "x-session-affinity", "x-litellm-session-id")
    config = environment(STICKY_SESSION_HEADERS="X-Zed x-a,X-B")
    assert config.sticky_session_headers == ("x-zed", "x-a", "x-b")
    assert config.effective()["STICKY_SESSION_HEADERS"] == "x-zed x-a x-b"
    assert environment(STICKY_SESSION_HEADERS="").sticky_session_headers == ()
    for bad in ("x_session", "x-a: b", "é", "x-a;x-b"):
        with pytest.raises(ConfigError, match="STICKY_SESSION_HEADERS: got .* without underscores"):
            environment(STICKY_SESSION_HEADERS=bad)


def test_allowed_origins_are_separated_by_commas_or_spaces(environment):
    """002-R24"""
    assert environment().cors_allow_origins == frozenset()
    config = environment(CORS_ALLOW_ORIGINS="https://b.example, http://[::1]:3000 *")
    assert config.cors_allow_origins == {"https://b.example", "http://[::1]:3000", "*"}
    assert config.effective()["CORS_ALLOW_ORIGINS"] == "* http://[::1]:3000 https://b.example"


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("_MS")])
def test_a_duration_has_a_least_value_that_is_one(environment, name):
    """001-R4: no network answers within a millisecond."""
    least = {"MODELS_REFRESH_MS": 20, "UTILIZATION_REFRESH_MS": 20,
             "CONTROL_PLANE_TIMEOUT_MS": 100}.get(name, 50)
    with pytest.raises(ConfigError, match=f"{name}: got '{least - 1}', .* at least {least}"):
        environment(**{name: str(least - 1)})
    # The one may not be more than the other.
    environment(**{"UPSTREAM_HEADER_TIMEOUT_MS": "50", name: str(least)})


def test_the_header_deadline_grows_with_a_streaming_body_up_to_the_other_one(environment):
    """002-R13"""
    config = environment()
    seconds = config.header_timeout_s
    assert [seconds(True, kib * 1024) for kib in (0, 1, 100, 10_000)] == [10, 10.25, 35, 600]
    assert seconds(True, 512) == 10.125  # in proportion to its bytes
    assert seconds(False, 0) == seconds(False, 10**9) == 600
    level = environment(UPSTREAM_HEADER_TIMEOUT_MS_PER_KIB="0").header_timeout_s
    assert level(True, 10**9) == 10


def test_the_header_deadline_of_a_stream_is_not_more_than_that_of_other_requests(environment):
    """002-R13"""
    for name, value, got in (("UPSTREAM_NONSTREAM_HEADER_TIMEOUT_MS", "9999", "10000"),
                             ("UPSTREAM_HEADER_TIMEOUT_MS", "10001", "10001")):
        with pytest.raises(ConfigError) as caught:
            environment(**{name: value})
        assert str(caught.value) == (
            f"UPSTREAM_HEADER_TIMEOUT_MS: got '{got}', expected at most "
            "UPSTREAM_NONSTREAM_HEADER_TIMEOUT_MS.")
    environment(UPSTREAM_HEADER_TIMEOUT_MS="9999")


def test_the_first_cooling_takes_no_longer_than_the_longest(environment):
    """003-R37: also where the first has its default"""
    for name, value, got in (("COOLDOWN_MAX_SECS", "4", "5"), ("COOLDOWN_SECS", "61", "61")):
        with pytest.raises(ConfigError) as caught:
            environment(**{name: value})
        assert str(caught.value) == (
            f"COOLDOWN_SECS: got '{got}', expected at most COOLDOWN_MAX_SECS.")
    environment(COOLDOWN_MAX_SECS="61")
    environment(COOLDOWN_SECS="0", COOLDOWN_MAX_SECS="1")


def test_all_bodies_together_may_be_as_large_as_one(environment):
    """007-R20"""
    environment(MAX_REQUEST_BYTES="1000", MAX_BODY_BYTES_IN_FLIGHT="1000")
    with pytest.raises(ConfigError, match="MAX_BODY_BYTES_IN_FLIGHT: got '999', expected at least "
                                          "MAX_REQUEST_BYTES"):
        environment(MAX_REQUEST_BYTES="1000", MAX_BODY_BYTES_IN_FLIGHT="999")


@pytest.mark.parametrize("connections, health, files, places", [
    ("2000", "", -1, 2000), ("2000", "", 4100, 2000), ("2000", "", 1100, 500),
    ("2000", "127.0.0.1:1", 1000, 300), ("5", "", 1024, 5), ("1", "", 1024, 2),
    ("2000", "", 64, 2)])
def test_a_worker_takes_as_many_connections_as_its_files_allow(
        environment, connections, health, files, places):
    """007-R1, 007-R12: and two at least, one for a request and one for a probe."""
    config = environment(WORKER_CONNECTIONS=connections, HEALTH_LISTEN_ADDR=health)
    assert config.places(files) == places
