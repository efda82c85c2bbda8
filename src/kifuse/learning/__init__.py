"""The learner: how it is opened, learns a task, is asked, scored, repaired, rolled back or made to forget."""
