"""Mutation tests: small changes of the source that some test should notice, and which of them none did.

Comes in: packages, tests that run in seconds, a seed. Goes out: a sample of mutants with what became of each.
Decision: code of our own. mutmut 3.8 draws no sample, mutates inside functions only and writes a copy of the whole tree;
cosmic-ray starts a process that imports torch for each mutant and edits the working tree. Here a process that has torch
and pytest loaded forks for each mutant, and an import hook hands out the changed source, to processes of tests as well.
"""
