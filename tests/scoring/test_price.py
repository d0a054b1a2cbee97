"""Money: what tokens cost, and budgets of it that are never exceeded."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbpt_api.scoring.backend import Usage
from fedbpt_api.scoring.budget import Budget, BudgetSpent, Limits
from fedbpt_api.scoring.price import Price

PRICE = Price(Decimal("2.5"), Decimal("0.25"), Decimal(10))


@pytest.mark.parametrize(
    ("usage", "generated", "cost"),
    [
        (Usage(), 1, "0"),
        (Usage(1, 1000, 0, 1), 0, "0.0025"),
        (Usage(1, 1000, 0, 1), 1, "0.00251"),
        (Usage(1, 1000, 1000, 1), 0, "0.00025"),
        (Usage(3, 1_000_000, 400_000, 2), 1, "1.60003"),  # 600,000 at 2.5, 400,000 at 0.25, 3 at 10
    ],
)
def test_what_tokens_cost(usage: Usage, generated: int, cost: str) -> None:
    price = Price(PRICE.input, PRICE.cached, PRICE.output, "EUR", generated)
    assert price.of(usage) == Decimal(cost)


def test_parts_add_up_to_the_whole_exactly() -> None:
    price = Price(Decimal("0.1"), Decimal("0.03"), Decimal("0.7"))
    parts = [Usage(1, 7 * i, i, 1) for i in range(1000)]
    assert sum(map(price.of, parts)) == price.of(sum(parts, Usage()))


def test_a_reservation_foresees_the_full_price_and_a_cached_answer_pays_less() -> None:
    budget = Budget(Limits(money=Decimal("0.0026")), price=PRICE)
    work = Usage(1, 1000, 0, 1)
    budget.reserve(work)
    with pytest.raises(BudgetSpent, match="money"):
        budget.reserve(work)
    budget.settle(work, Usage(1, 1000, 1000, 1))
    assert budget.money == Decimal("0.00026")
    with pytest.raises(BudgetSpent, match="money"):
        budget.reserve(work)
    budget.reserve(Usage(1, 900, 0, 1))


def test_a_request_that_failed_costs_what_was_answered_of_it() -> None:
    budget = Budget(Limits(money=Decimal(1)), price=PRICE)
    budget.reserve(Usage(4, 4000, 0, 4))
    budget.settle(Usage(4, 4000, 0, 4), Usage())
    assert budget.money == 0
    budget.reserve(Usage(4, 4000, 0, 4))
    budget.settle(Usage(4, 4000, 0, 4), Usage(1, 1000, 0, 1))
    assert budget.money == PRICE.of(Usage(1, 1000, 0, 1))


def test_the_run_s_money_is_taken_for_the_run_s_end_and_a_client_s_for_its_own() -> None:
    run = Budget(Limits(money=Decimal("0.01")))
    dear = Budget(Limits(money=Decimal("0.004")), run, price=PRICE)
    cheap = Budget(Limits(), run, price=Price(Decimal(1), Decimal(1), Decimal(0)))
    work = Usage(1, 1000, 0, 1)
    dear.reserve(work)
    with pytest.raises(BudgetSpent) as own:
        dear.reserve(work)
    assert own.value.own
    cheap.reserve(Usage(1, 7000, 0, 1))
    with pytest.raises(BudgetSpent) as end:
        cheap.reserve(work)
    assert not end.value.own and end.value.cap == "money"
    dear.settle(work, work)
    assert run.money == dear.money == PRICE.of(work) and cheap.money == 0


def test_answers_of_an_earlier_session_count_as_paid() -> None:
    budget = Budget(price=PRICE)
    budget.start(standing=True)
    budget.reserve(Usage(2, 2000, 0, 2))
    budget.recall(Usage(2, 2000, 0, 2), Usage(2, 2000, 500, 1), 1.0)
    assert budget.money == PRICE.of(Usage(2, 2000, 500, 1))


def test_money_is_the_scarcest_share_where_it_is() -> None:
    budget = Budget(Limits(scored=100, money=Decimal("0.01")), price=Price(Decimal(1), Decimal(1)))
    budget.settle(Usage(), Usage(5, 5000, 0, 5))
    assert budget.used() == pytest.approx(0.5)
    assert budget.used(5) == pytest.approx(1.0)


@given(
    work=st.lists(
        st.tuples(st.integers(0, 1), st.integers(1, 50), st.floats(0, 1), st.booleans()), max_size=40
    ),
    limits=st.tuples(st.integers(1, 500), st.none() | st.integers(1, 300)),
)
def test_no_order_of_requests_passes_a_limit_of_money(
    work: list[tuple[int, int, float, bool]], limits: tuple[int, int | None]
) -> None:
    micro = Decimal(1_000_000)
    run = Budget(Limits(money=limits[0] / micro))
    own = None if limits[1] is None else limits[1] / micro
    price = Price(Decimal(1), Decimal("0.1"), Decimal(3))
    clients = [Budget(Limits(money=own), run, price=price), Budget(Limits(), run, price=price)]
    under_way: list[tuple[Budget, Usage, Usage]] = []
    for client, tokens, cached, wait in work:
        usage = Usage(1, tokens, 0, 1)
        try:
            clients[client].reserve(usage)
        except BudgetSpent:
            continue
        under_way.append((clients[client], usage, Usage(1, tokens, int(cached * tokens), 1)))
        while under_way and not wait:
            budget, reserved, spent = under_way.pop()
            budget.settle(reserved, spent)
    for budget, reserved, spent in under_way:
        budget.settle(reserved, spent)
    assert run.money == sum(client.money for client in clients) <= run.limits.money  # type: ignore[operator]
    assert own is None or clients[0].money <= own
