"""Benchmarks: commands that measure and write pages of `docs/`. They import raydpo; raydpo never imports them."""
