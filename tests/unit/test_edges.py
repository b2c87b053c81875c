"""Small pure parts: header fields, error bodies, the request's line, the store."""

import json
import logging

import pytest

from app.errors import API_ERRORS, ApiError
from app.journal import Ending, RequestRecord
from app.logs import logging_config
from app.routing.headers import client_headers, sane_request_id, upstream_headers
from app.routing.catalogue import Model
from app.routing.ranking import UtilizationRow
from app.routing.view import View, Views
from app.seen.memory import Memory


def test_wsgi_names_become_header_fields_and_server_variables_do_not_cross():
    """002-R10"""
    headers = upstream_headers({
        "HTTP_X_CUSTOM": "1", "CONTENT_TYPE": "a/b", "CONTENT_LENGTH": "5", "HTTP_HOST": "x",
        "HTTP_EXPECT": "100-continue", "HTTP_ACCEPT_ENCODING": "gzip", "PATH_INFO": "/",
        "REMOTE_ADDR": "192.0.2.1", "SERVER_NAME": "x", "HTTP_CONNECTION": " close , X-Hop,",
        "HTTP_X_HOP": "1", "HTTP_TRANSFER_ENCODING": "chunked", "wsgi.input": ""}, "id")
    assert headers == {"X-Custom": "1", "Content-Type": "a/b", "Accept-Encoding": "identity",
                       "X-Request-Id": "id"}


def test_what_connection_names_stays_behind_in_whatever_case():
    """002-R16"""
    fields = [("Connection", "x-a"), ("CONNECTION", "X-B, close"), ("X-A", "1"), ("x-b", "2"),
              ("X-C", "3"), ("TE", "x"), ("Date", "now"), ("Server", "s"),
              ("X-Chutes-Autopilot-Selected", "of the upstream")]
    assert client_headers(fields) == [("X-C", "3")]


@pytest.mark.parametrize("given, sane", [
    ("a", True), ("~" * 128, True), ("", False), ("a b", False), ("a" * 129, False), ("é", False),
    ("a\n", False)])
def test_a_request_id_is_visible_ascii_of_bounded_length(given, sane):
    """002-R18"""
    assert (sane_request_id(given) == given) is sane
    assert sane_request_id("") != sane_request_id("")


@pytest.mark.parametrize("code", API_ERRORS)
def test_every_error_has_all_four_keys_and_its_place_in_the_table(code):
    """002-R21"""
    error = ApiError(code, "Some words.")
    body = json.loads(error.body())
    status, type_, param = API_ERRORS[code]
    assert body == {"error": {
        "message": "Some words.", "type": type_, "param": param, "code": code}}
    assert error.status == status


def test_a_requests_line_is_written_once_and_says_how_it_ended(caplog):
    """001-R8"""
    now = [10.0]
    record = RequestRecord("the-id", lambda: now[0], Memory())
    now[0] = 10.25
    record.begin_answer()
    now[0] = 11.0
    record.ending = Ending.COMPLETE
    with caplog.at_level(logging.INFO, "app.request"):
        record.finish()
        record.finish()
    [line] = caplog.records
    assert (line.first_byte_ms, line.duration_ms, line.ended) == (250.0, 1000.0, "complete")
    assert line.request_id == "the-id"


@pytest.mark.parametrize("level, app, libraries", [
    ("debug", "DEBUG", "INFO"), ("info", "INFO", "INFO"), ("error", "ERROR", "ERROR")])
def test_the_libraries_debug_lines_stay_off_whatever_the_level(level, app, libraries):
    """001-R7"""
    config = logging_config(level)
    assert config["loggers"]["app"]["level"] == app
    assert config["root"]["level"] == config["loggers"]["gunicorn.error"]["level"] == libraries
    assert config["loggers"]["urllib3"]["level"] == "CRITICAL"


@pytest.mark.parametrize("timestamps, told_at", [
    ([960.0, 900.0, 920.0, None], 20.0), ([900.0, 960.0], 0.0), ([None], None),
    ([400.0, 500.0, 2000.0, 999.0, 500.0], -400.0), ([2000.0], None), ([1060.5, 900.0], 0.0),
    ([1060.0], 97.0), ([-1e12], 100.0 - 1000 - 1e12)])
def test_a_snapshot_tells_of_the_median_timestamp_of_rows_that_are_not_of_the_future(
        timestamps, told_at):
    """003-R61"""
    views = Views(lambda: 100.0, lambda _: None, wall_clock=lambda: 1000.0)
    views.take_rows([UtilizationRow(f"{number}-TEE", 1, timestamp=timestamp)
                     for number, timestamp in enumerate(timestamps)], age_s=3.0)
    views.take_models([Model("0-TEE")])
    snapshot = views.current.snapshot
    assert snapshot.told_at == told_at
    assert snapshot.as_of == (97.0 if told_at is None else told_at)


def test_a_new_allowlist_ranks_the_old_rows_again_and_keeps_their_age():
    """003-R1, 003-R8"""
    now, told = [0.0], []
    views = Views(lambda: now[0], told.append)
    assert views.current == View() and told == [views.current]
    views.take_models([Model("a")], age_s=2.0)
    assert views.current.catalogue.taken_at == -2.0 and views.current.snapshot is None
    now[0] = 5.0
    views.take_rows([UtilizationRow("a", 1), UtilizationRow("b", 2)], age_s=1.0)
    before = views.current
    assert before.pool("chutesai/AutoPilot").names == ("a",)
    now[0] = 8.0
    views.take_models([Model("a"), Model("b")])
    assert views.current.pool("chutesai/AutoPilot").names == ("b", "a")
    assert before.pool("chutesai/AutoPilot").names == ("a",)
    assert (views.current.snapshot.taken_at, views.current.catalogue.taken_at) == (4.0, 8.0)
    assert told[-1] is views.current and len(told) == 4
