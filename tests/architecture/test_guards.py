"""The list of guards is in step with the code: `make mutate-guards` can take each of them out."""

from __future__ import annotations

import ast
import json

import mutate_guards
import pytest

GUARDS = mutate_guards.load_guards()


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.name)
def test_a_guard_can_be_taken_out(guard: mutate_guards.Guard) -> None:
    source = (mutate_guards.ROOT / guard.file).read_text(encoding="utf-8")
    without = source.replace(guard.old, guard.new)
    if guard.file.endswith(".json"):
        json.loads(without)
    elif guard.file.endswith(".py"):
        ast.parse(without)
    assert guard.promise
    assert guard.tests
