"""The colours of the page and the figures, light and dark. Colour-blind people can tell them apart, too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

STEPS = 21
"""The number of colours of a heatmap's scale."""

Triple = tuple[float, float, float]

# The rows of the matrices from linear sRGB to LMS and from LMS to OKLab (Ottosson 2020).
_TO_LMS = (
    (0.4122214708, 0.5363325363, 0.0514459929),
    (0.2119034982, 0.6806995451, 0.1073969566),
    (0.0883024619, 0.2817188376, 0.6299787005),
)
_TO_LAB = (
    (0.2104542553, 0.7936177850, -0.0040720468),
    (1.9779984951, -2.4285922050, 0.4505937099),
    (0.0259040371, 0.7827717662, -0.8086757660),
)
_FROM_LAB = (
    (1.0, 0.3963377774, 0.2158037573),
    (1.0, -0.1055613458, -0.0638541728),
    (1.0, -0.0894841775, -1.2914855480),
)
_FROM_LMS = (
    (4.0767416621, -3.3077115913, 0.2309699292),
    (-1.2684380046, 2.6097574011, -0.3413193965),
    (-0.0041960863, -0.7034186147, 1.7076147010),
)


@dataclass(frozen=True)
class Theme:
    """The colours of one theme, as `#rrggbb`.

    Attributes:
        paper: The background of the page.
        raised: The background of blocks of code and of text.
        ink: Text.
        muted: Less important text and axis labels.
        line: Thin lines without a meaning.
        axis: Lines with a meaning (contrast 3:1 against the paper).
        accent: Links, focus, the one curve that matters.
        faint: Curves in the background.
        right: Text about a right answer.
        wrong: Text about a wrong one.
        groups: Methods and parts of a whole; these also differ by shape, dash or label.
        scale: The two ends of the scale from nothing to much.
        spread: The lowest, middle and highest colour of the scale around zero.
    """

    paper: str
    raised: str
    ink: str
    muted: str
    line: str
    axis: str
    accent: str
    faint: str
    right: str
    wrong: str
    groups: tuple[str, ...]
    scale: tuple[str, ...]
    spread: tuple[str, ...]

    @property
    def parts(self) -> tuple[str, ...]:
        """The colours of the parts of a whole: kept, shared, overwritten, neither."""
        return self.groups[0], self.groups[2], self.groups[1], self.line

    def steps(self, diverging: bool = False) -> list[str]:
        """Make the scale in `STEPS` colours that look equally far apart.

        Args:
            diverging: Whether the values lie around zero.

        Returns:
            Colours from the least value to the most.
        """
        return ramp(self.spread if diverging else self.scale, STEPS)


LIGHT = Theme(
    paper="#ffffff",
    raised="#f5f7f9",
    ink="#1a222b",
    muted="#55616e",
    line="#dde3e9",
    axis="#87929e",
    accent="#0f5ea8",
    faint="#c3ccd5",
    right="#00704f",
    wrong="#b04a00",
    groups=("#126dc4", "#db6804", "#835765", "#1b3786", "#6e2401", "#9d8d9d"),
    scale=("#eef4fa", "#7fb2dd", "#1f6fb5", "#08306b"),
    spread=("#9a4a00", "#e8a35c", "#f4f4f2", "#77addb", "#0b4f94"),
)
DARK = Theme(
    paper="#11161c",
    raised="#1a212a",
    ink="#e7ecf1",
    muted="#a3afbb",
    line="#2c3640",
    axis="#6d7985",
    accent="#74b6f2",
    faint="#5b6976",
    right="#2fc594",
    wrong="#f28a3c",
    groups=("#5da9f4", "#e48c49", "#a07a90", "#4be5f8", "#ffc887", "#a24c17"),
    scale=("#1c2631", "#245a8d", "#549fdb", "#cfe6fb"),
    spread=("#ffb870", "#a3642a", "#262d35", "#2f6ba5", "#9ccbf8"),
)


def ramp(stops: Sequence[str], count: int) -> list[str]:
    """Blend colours in OKLab, where equal distances look equal.

    Args:
        stops: Two or more colours at equal distances.
        count: How many to make, two or more.

    Returns:
        The colours; the first and the last are those of `stops`.
    """
    labs = [_oklab(stop) for stop in stops]
    made = []
    for i in range(count):
        place = i / (count - 1) * (len(labs) - 1)
        left = min(int(place), len(labs) - 2)
        share = place - left
        made.append(_hex([a + share * (b - a) for a, b in zip(labs[left], labs[left + 1], strict=True)]))
    return made


def step_of(value: float, low: float, high: float) -> int:
    """Find the number of a value's colour on a scale.

    Args:
        value: The value; a value beyond an end has the colour of that end.
        low: Value of the first colour.
        high: Value of the last colour.

    Returns:
        From 0 to `STEPS` - 1.
    """
    if high <= low:
        return 0
    return max(0, min(STEPS - 1, round((value - low) / (high - low) * (STEPS - 1))))


def text_on(colour: str) -> str:
    """Return black or white, whichever is easier to read on a colour; one of them always has 4.5:1."""
    return max(("#000000", "#ffffff"), key=lambda text: contrast(text, colour))


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of two colours as WCAG 2 defines it, from 1 to 21."""
    a, b = sorted((_luminance(one), _luminance(other)))
    return (b + 0.05) / (a + 0.05)


def _luminance(colour: str) -> float:
    red, green, blue = _linear(colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _linear(colour: str) -> Triple:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return red, green, blue


def _hex(lab: Sequence[float]) -> str:
    lms = [value**3 for value in _times(_FROM_LAB, lab)]
    text = "#"
    for value in _times(_FROM_LMS, lms):
        clipped = max(0.0, min(1.0, value))
        shown = 12.92 * clipped if clipped <= 0.0031308 else 1.055 * clipped ** (1 / 2.4) - 0.055
        text += f"{round(shown * 255):02x}"
    return text


def _oklab(colour: str) -> Triple:
    return _times(_TO_LAB, [value ** (1 / 3) for value in _times(_TO_LMS, _linear(colour))])


def _times(rows: Sequence[Triple], vector: Sequence[float]) -> Triple:
    first, second, third = (sum(m * v for m, v in zip(row, vector, strict=True)) for row in rows)
    return first, second, third
