"""Stickiness in one request: the client's choice, and what each attempt does to it.

Source: specs/005 R3-R5, R15, R16.
"""

import dataclasses
from collections.abc import Mapping

from app.routing.client_key import ClientKeys
from app.routing.decision import Caller
from app.routing.outcomes import Attempt, Blame
from app.sticky.store import NoStickiness, StickyChoice, StickyStore


@dataclasses.dataclass
class ClientStickiness:
    """One client in one request; told of each attempt as it ends.

    store       keeps the choice
    client_key  of the client
    choice      what the store said of the client before the first attempt
    in_list     whether the request is in list mode
    failed      whether an attempt has failed
    kept        the choice is not for this request, and a success of another model leaves it
    """

    store: StickyStore
    client_key: str
    choice: StickyChoice
    in_list: bool = False
    failed: bool = False
    kept: bool = False

    def caller(self, now: float) -> Caller:
        """Return what the decision may know of the client.

        now  on the store's clock, seconds
        """
        moved_at = self.choice.moved_at
        return Caller(self.client_key, self.choice.model,
                      None if moved_at is None else now - moved_at)

    def passed_over(self, model: str, _why: str) -> None:
        """Keep the choice if it is passed over when its turn has come.

        Source: specs/005 R15.
        """
        if model == self.choice.model:
            self.kept = True

    def attempted(self, attempt: Attempt) -> None:
        """Forget the chosen model if it failed; keep a model that answered with a 2xx.

        Cost  one call of the store, or none; may switch greenlets

        Source: specs/005 R4, R5, R16.
        """
        if attempt.failure is not None:
            self.failed = True
            if attempt.model == self.choice.model:
                self._chosen_failed(attempt.blame)
        elif not self.kept and attempt.is_success:
            self.store.put(self.client_key, attempt.model, self.choice,
                           by_list=self.in_list and self.failed)

    def _chosen_failed(self, blame: Blame) -> None:
        if blame in (Blame.EDGE, Blame.SOFTLY):
            # It says nothing against the model, which still remembers the client's prompts.
            self.kept = True
        else:
            self.store.discard(self.client_key, self.choice)


@dataclasses.dataclass(frozen=True)
class Stickiness:
    """Looks up the clients of requests."""

    store: StickyStore
    client_keys: ClientKeys

    @property
    def is_on(self) -> bool:
        """Say whether choices are kept at all."""
        return not isinstance(self.store, NoStickiness)

    def for_client(self, environ: Mapping[str, str], prompt_cache_key: str = "",
                   in_list: bool = False, looks_only: bool = False) -> ClientStickiness:
        """Return the stickiness of one request.

        environ           of the request, and
        prompt_cache_key  of its body; see ClientKeys.derive
        in_list           whether it is in list mode
        looks_only        whether the choice's life is left as it is
        Cost              one call of the store; may switch greenlets
        """
        client_key = self.client_keys.derive(environ, prompt_cache_key)
        look_up = self.store.look if looks_only else self.store.get
        return ClientStickiness(self.store, client_key, look_up(client_key), in_list)
