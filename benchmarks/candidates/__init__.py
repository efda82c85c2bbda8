"""Methods of our own that docs/measured/winning.md tries; none of them is part of kifuse."""
