"""What keeps the project in order and is no part of it: import contracts, the lock of the stack, tests on the newest one,
mutants."""
