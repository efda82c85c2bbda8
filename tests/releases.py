"""Which releases of other libraries are installed, and which tests are of what older ones do not have."""

from __future__ import annotations

import re
from importlib.metadata import version

from packaging.version import Version

NEEDS = {
    r"(?<![a-z])osf(?![a-z])": ("peft", "0.21"),
    "raw_examples_is_prepared": ("trl", "1.8"),
    # older ones have a loss that can be differentiated twice
    "fused_loss_are_refused": ("trl", "1.16"),
    # older ones warn of a base model without a file
    "putting_an_adapter_on_warns_of_nothing": ("peft", "0.21"),
}
"""By a pattern of the tests' names: the library, and a release in which it is so."""


def older_than(library: str, release: str) -> bool:
    """Whether the installed release of a library came before another one."""
    return Version(version(library)) < Version(release)


def lacking(test: str) -> str:
    """What a test needs and is not installed, in words; nothing if it can run."""
    found = (need for pattern, need in NEEDS.items() if re.search(pattern, test.lower()))
    return next((f"needs {' '.join(need)} or later" for need in found if older_than(*need)), "")
