"""The papers' tables and figures, each run by its name, with the published figures beside."""
