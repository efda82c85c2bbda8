"""Turn the records of runs into tables, pictures and pages. Pure functions, without torch."""
