"""What holds for all tests."""

from __future__ import annotations

from hypothesis import settings

# how long an example takes says more about the machine than about the code; pytest-timeout bounds the whole test
settings.register_profile("fedbus", deadline=None)
settings.load_profile("fedbus")
