"""The models, as the official clients list them and look them up."""

import pytest

from tests.clients.conftest import LISTED

pytestmark = pytest.mark.parametrize("client", ["openai_python", "openai_node"], indirect=True)
ALIAS = "chutesai/AutoPilot"


def test_the_list_has_the_aliases_and_then_the_feeds_entries_as_they_came(client, upstream):
    """002-R54"""
    *aliases, listed = client("models", "")["models"]
    assert [listed] == upstream.models["data"]
    assert ALIAS in [alias["id"] for alias in aliases]
    assert all(alias["object"] == "model" and alias["owned_by"] == "chutes-router"
               for alias in aliases)


def test_one_model_is_looked_up_by_its_id(client, upstream):
    """002-R54"""
    assert [client("one_model", LISTED)] == upstream.models["data"]
    assert client("one_model", ALIAS)["id"] == ALIAS


def test_a_model_that_is_not_there_is_an_error_that_names_it(client, router):
    """002-R54"""
    seen = client("one_model", "nobody/knows")
    assert (seen["status"], seen["code"], seen["param"]) == (404, "model_not_found", "model")
    assert seen["type"] == "invalid_request_error"
    assert router.get("/v1/models/nobody/knows").error["message"] in seen["shown"]
