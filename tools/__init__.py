"""What the project is kept in order with. Nothing here is part of the program."""
