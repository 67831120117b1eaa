"""The bounded cache keeps what was used last."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fedbus.trust.cache import GenerationCache

keys = st.integers(0, 12)


@given(st.integers(1, 5), st.lists(st.tuples(st.sampled_from(["get", "put", "clear"]), keys), max_size=60))
def test_the_values_used_last_are_kept_and_no_more_than_twice_as_many(size, actions):
    cache: GenerationCache[int, str] = GenerationCache(size)
    used: list[int] = []  # keys, the last used at the end
    for action, key in actions:
        if action == "clear":
            cache.clear()
            used = []
        elif action == "put":
            cache.put(key, str(key))
            used = [*(one for one in used if one != key), key]
        else:
            value = cache.get(key)
            assert value in (None, str(key))
            assert key not in used[-size:] or value is not None
            if value is not None:
                used = [*(one for one in used if one != key), key]
        assert len(cache) <= 2 * size
