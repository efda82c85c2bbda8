"""The hand-written material of the support-desk task stream and the grammar that composes it."""
