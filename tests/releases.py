"""Find out which releases of other libraries are installed, and which tests older releases cannot run."""

from __future__ import annotations

import re
from importlib.metadata import version

from packaging.version import Version

NEEDS = {
    r"(?<![a-z])osf(?![a-z])": ("peft", "0.21"),
    "raw_examples_is_prepared": ("trl", "1.8"),
    # older releases have a loss that can be differentiated twice
    "fused_loss_are_refused": ("trl", "1.16"),
    # older releases warn about a base model without a file
    "putting_an_adapter_on_warns_of_nothing": ("peft", "0.21"),
}
"""The library and the release that tests need, by a pattern of the tests' names."""


def older_than(library: str, release: str) -> bool:
    """Return whether the installed release of a library is older than another one."""
    return Version(version(library)) < Version(release)


def lacking(test: str) -> str:
    """Say which release a test needs that is not installed; an empty text if it can run."""
    found = (need for pattern, need in NEEDS.items() if re.search(pattern, test.lower()))
    return next((f"needs {' '.join(need)} or later" for need in found if older_than(*need)), "")
