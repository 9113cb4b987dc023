"""The circuit breaker: a run whose machines fail one after the other stops, says what to do, and goes on later."""

import pytest

from pipeline.breaker import Breaker, InfraStopped
from pipeline.types import Episode, Stop
from tasks import Outcome, Verdict


def ended(outcome: Outcome | None) -> Episode:
    verdict = Verdict("t", outcome, "no daemon") if outcome else None
    return Episode("e", "g", "t", (), Stop.SUBMITTED, "", verdict)


def test_only_failures_in_a_row_count():
    breaker = Breaker(3)
    for outcome in (Outcome.INFRA, Outcome.INFRA, Outcome.UNRESOLVED, Outcome.INFRA, Outcome.INFRA, None, Outcome.INFRA, Outcome.INFRA):
        breaker.note(ended(outcome))
    with pytest.raises(InfraStopped, match=r"3 episodes in a row .* no daemon\. See what works with `greengrad doctor`"):
        breaker.note(ended(Outcome.INFRA))
