"""The learner: opened, taught one task, asked, watched, repaired, taken back, and made to forget."""
