"""Cooling in one request: what is set aside, whether it is a probe, and what its attempts say.

Source: specs/003 R36-R38, R43, R44.
"""

import logging
import random
from collections.abc import Callable

from app import metrics
from app.cooling.records import HostRecords
from app.routing.conditions import QUIET, Conditions
from app.routing.cooling import (HEALTHY, CoolingSettings, Outcome, after, cooling, given_back,
                                 is_due, probed)
from app.routing.outcomes import Attempt, Blame
from app.routing.view import View

logger = logging.getLogger(__name__)


class Cooling:
    """What the requests of this worker know of the host's models, and add to it.

    records   of the host
    settings  how models cool; none does if the first cooling takes 0 s
    first_byte_timeout_s  from the headers of a 2xx to its first body byte, total
    clock     returns seconds, monotonic and the same for all processes
    chance    returns 0..1, 1 excluded
    """

    def __init__(self, records: HostRecords, settings: CoolingSettings,
                 first_byte_timeout_s: float, clock: Callable[[], float],
                 chance: Callable[[], float] = random.random) -> None:
        self.records, self._settings = records, settings
        self._first_byte_timeout_s = first_byte_timeout_s
        self._clock, self._chance = clock, chance

    def conditions(self) -> Conditions:
        """Return which models are set aside now, for the decision of one request.

        Cost  0.3 µs while every model is healthy; then some µs for each that is not
        """
        records = self.records.all()
        if not records:
            return QUIET
        now = self._clock()
        left = {model: cooling(record, now) for model, record in records.items()}
        return Conditions({model: seconds for model, seconds in left.items() if seconds})

    def for_request(self, conditions: Conditions, view: View,
                    header_timeout_s: float) -> "RequestCooling":
        """Return what is told of one request's attempts.

        conditions, view  by which it was decided
        header_timeout_s  total for one attempt's response headers
        """
        return RequestCooling(
            self, conditions, view, header_timeout_s + self._first_byte_timeout_s)

    def claim(self, model: str, deadline_s: float) -> float | None:
        """Take the probe of a model if that is due.

        deadline_s  the probe is over within this time; it is held for the longest cooling at most
        Returns     until when the caller has the probe; 0.0: there is none, the caller may try the
                    model; None: another request has it
        Cost        0.4 µs without records; 20 µs for a model that is due, or 5 ms while the store
                    is locked
        """
        record = self.records.all().get(model)
        if record is None:
            return 0.0
        now = self._clock()
        if record.probe_until > now:
            return None
        if not is_due(record, now, self._settings):
            return 0.0
        within_s = min(deadline_s, self._settings.most_s)
        change = self.records.change(
            model, lambda record: probed(record, now, within_s)
            if is_due(record, now, self._settings) else record)
        if change is None:
            # The store is in trouble. A model must not stay set aside for that.
            return 0.0
        return change.after.probe_until if change.after is not change.before else None

    def has_probe(self, model: str, probe_until: float) -> bool:
        """Say whether nothing has happened to a probe since it was taken. Cost: 0.3 µs."""
        return self.records.all().get(model, HEALTHY).probe_until == probe_until

    def give_back(self, model: str, probe_until: float) -> None:
        """Let another request have the probe. Cost: 20 µs, or 5 ms while the store is locked."""
        self.records.change(model, lambda record: given_back(record, probe_until))

    def take(self, model: str, outcome: Outcome, took_s: float, view: View) -> None:
        """Take an attempt's outcome in; log and count where a cooling begins or ends by it.

        took_s   how long ago the attempt began
        view     of the request; of what it does not list nothing is remembered
        Cost     0.2 µs for the success of a model without a record; else 20 µs, or 5 ms while the
                 store is locked
        """
        if not self._settings.first_s or model not in self.records.all() and (
                outcome is Outcome.SUCCEEDED or not view.lists(model)):
            return
        now = self._clock()
        began = now - took_s
        change = self.records.change(
            model, lambda record: after(record, outcome, began, now, self._settings, self._chance))
        if change is None:
            return
        if change.before is HEALTHY:
            # rate() ignores a series' first sample.
            metrics.count(metrics.cooldowns_total, view.label(model), amount=0)
        if change.after.until > change.before.until:
            metrics.count(metrics.cooldowns_total, view.label(model))
            logger.warning("model cooling", extra={
                "model": view.label(model), "seconds": round(change.after.until - now, 1),
                "failures": change.after.failures})
        elif change.before.failures >= self._settings.failures > change.after.failures:
            logger.info("model cooling no more", extra={"model": view.label(model)})

    def shown(self, view: View) -> dict[str, int]:
        """Return each model with a record by its label: 1 while it is set aside, else 0."""
        set_aside = self.conditions().cooling
        return {view.label(model): int(model in set_aside) for model in self.records.all()}


class RequestCooling:
    """One request: told before and after each attempt.

    conditions, view  see Cooling.for_request
    deadline_s        one attempt is over within this time
    """

    __slots__ = ("_cooling", "_conditions", "_view", "_deadline_s", "_model", "_probe_until")

    def __init__(self, host: Cooling, conditions: Conditions, view: View,
                 deadline_s: float) -> None:
        self._cooling, self._conditions = host, conditions
        self._view, self._deadline_s = view, deadline_s
        # The model that this request probes, and until when.
        self._model, self._probe_until = "", 0.0

    def may_try(self, model: str) -> bool:
        """Say whether the request may try a model; where that is due, by taking its probe.

        A model that was set aside when the request was decided stands where it was put for that.

        Cost  see Cooling.claim
        """
        if model in self._conditions.cooling:
            return True
        probe_until = self._cooling.claim(model, self._deadline_s)
        if probe_until:
            self._model, self._probe_until = model, probe_until
        return probe_until is not None

    def attempted(self, attempt: Attempt) -> None:
        """Take note of an attempt as it ends. Cost: see Cooling.take."""
        outcome, probes = _outcome(attempt), attempt.model == self._model
        if outcome is Outcome.NOTHING:
            if probes:
                self.give_back()
            return
        # What a probe says is news, even if its clock was a little off. But it may have taken so
        # long that another was made.
        is_news = probes and self._cooling.has_probe(self._model, self._probe_until)
        took_s = 0.0 if is_news else attempt.duration_ms / 1000
        self._cooling.take(attempt.model, outcome, took_s, self._view)
        if probes:
            self._model = ""

    def give_back(self) -> None:
        """Give back a probe that has had no outcome; whoever has this calls it."""
        if self._model:
            self._cooling.give_back(self._model, self._probe_until)
            self._model = ""


def _outcome(attempt: Attempt) -> Outcome:
    if attempt.is_success:
        return Outcome.SUCCEEDED
    return Outcome.FAILED if attempt.blame is Blame.MODEL else Outcome.NOTHING
