"""A Ray of this machine that is told of GPUs which are not there: what is placed on them sees their numbers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import ray

from raydpo.runtime import ray_session


@contextmanager
def declared_ray(num_gpus: int) -> Iterator[None]:
    """With a token of its own and on loopback, as a session starts one, whatever ran in this process before."""
    with mock.patch.dict(os.environ, ray_session._local_environment()):
        ray_session._forget_cached_token()
        try:
            with ray_session._on_loopback():
                ray.init(address="local", num_cpus=4, num_gpus=num_gpus, include_dashboard=False, log_to_driver=False)
            yield
        finally:
            ray.shutdown()
    ray_session._forget_cached_token()
