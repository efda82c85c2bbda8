"""What a terminal shows. Text from files never controls it."""
