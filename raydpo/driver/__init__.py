"""The driver's side of each stage: plans work, runs actors, commits what they staged. One file a stage or role."""
