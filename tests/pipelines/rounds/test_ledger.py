"""What a run of rounds counts of itself: starts, loads and updates in place, by role."""

from __future__ import annotations

from threading import Thread

from raydpo.driver.ledger import Ledger


def test_each_kind_is_counted_by_role_and_nothing_stands_for_nothing() -> None:
    ledger = Ledger()
    ledger.started("train", 2)
    ledger.loaded("train", 2)
    ledger.updated("generate", 3)
    ledger.updated("generate")
    ledger.updated("train", 0)
    ledger.stands("reference", False)
    assert ledger.report() == {
        "standing": {"reference": False},
        "starts": {"train": 2},
        "model_loads": {"train": 2},
        "updates_in_place": {"generate": 4},
    }


def test_an_actor_counts_when_it_has_its_place() -> None:
    ledger = Ledger()
    ledger.at_place("judge", loads=False)("here")
    ledger.at_place("reference", loads=True)("here")
    assert ledger.report()["starts"] == {"judge": 1, "reference": 1}
    assert ledger.report()["model_loads"] == {"reference": 1}


def test_roles_count_in_threads_of_their_own() -> None:
    ledger = Ledger()
    threads = [Thread(target=lambda: [ledger.started("generate") for _ in range(2000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.report()["starts"] == {"generate": 8000}
