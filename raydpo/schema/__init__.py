"""Arrow schemas between stages, the key of a row, and the events that stages tell of. Each module is imported by its name."""
