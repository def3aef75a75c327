"""Capacity: what a run will take of memory, disk and time, by arithmetic, before anything of it is started."""
