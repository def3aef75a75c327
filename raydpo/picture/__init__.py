"""The interactive picture of the objectives: what each loss and its gradients do, computed by code made from our own."""
