"""Fixtures for the tests of the mathematics."""

import pytest
import torch


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    """Use one thread: small tensors gain nothing from more threads, which wait on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
