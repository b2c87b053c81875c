"""The list of models, as clients ask for it.

Source: specs/002 R54.
"""

import json
from collections.abc import Callable

from app.routing.catalogue import Catalogue
from app.routing.view import View

_OWNER = "chutes-router"


def listing(view: View, catalogue: Catalogue, pause: Callable[[], None]) -> bytes:
    """Return the list of all names that a client may use, as JSON.

    view       says what the aliases choose from
    catalogue  the view's
    pause      called after each alias to let others run
    Returns    an entry for each alias, then the entries of the models feed as they came. Where an
               alias has the name of a model, that model's entry is left out.
    Cost       copies the entries, no I/O
    """
    entries = []
    for name in view.aliases:
        entries.append(_alias_entry(view, name))
        pause()
    entries += [model.entry for model in catalogue.models.values() if model.id not in view.aliases]
    return b'{"object": "list", "data": [%s]}' % b", ".join(entries)


def listed(view: View, catalogue: Catalogue, name: str) -> bytes | None:
    """Return one entry of the list, or None."""
    if name in view.aliases:
        return _alias_entry(view, name)
    model = catalogue.models.get(name)
    return None if model is None else model.entry


def _alias_entry(view: View, name: str) -> bytes:
    # An alias has no date, and all workers and replicas must say the same.
    entry = {"id": name, "object": "model", "created": 0, "owned_by": _OWNER}
    context_length = view.pool(name).context_length
    if context_length is not None:
        entry["context_length"] = context_length
    return json.dumps(entry).encode()
