"""The front door for objects of Python: models, rows and adapters as a notebook has them.

Comes in: what a person holds (a path, a loaded model, a frame, a list of dicts). Goes out: an `AlignmentRun`.
Decision: everything in memory becomes a file or folder named by its content, and then the same `Config` runs as from YAML, so
that cache, resume and every check hold. The price: rows and a loaded model are written once.
"""
