"""`make soak`: runs that are disturbed again and again, beside runs that are not. tests/soak/__main__.py says how."""
