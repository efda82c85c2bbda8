"""What a terminal shows. Text from files never steers it."""
