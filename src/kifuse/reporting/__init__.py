"""From records to tables: pure functions of what runs left behind. No torch."""
